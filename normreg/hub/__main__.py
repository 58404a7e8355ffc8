"""`python -m normreg.hub --out FOLDER`: writes the repository and prints where it is."""

import argparse

from normreg.hub.repository import BACKENDS, write

DESCRIPTION = "Writes the layers for Hugging Face's `kernels` into a folder, and prints where."


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m normreg.hub", description=DESCRIPTION)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--namespace", metavar="NAME", help="namespace of the operators (default: made from the contents)"
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        default=BACKENDS,
        choices=BACKENDS,
        metavar="NAME",
        help=f"backends to write for (default: {' '.join(BACKENDS)})",
    )
    options = parser.parse_args()
    print(write(options.out, options.namespace, options.backends))


if __name__ == "__main__":
    main()

"""`python -m normreg.hub --out FOLDER`: writes the repository and prints where it is."""

import argparse

from normreg.hub.repository import BACKENDS, write


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m normreg.hub", description="Writes the layers.")
    parser.add_argument("--out", required=True, help="the folder that is written")
    parser.add_argument("--namespace", help="of the operators; it follows from the contents unless given")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    options = parser.parse_args()
    print(write(options.out, options.namespace, options.backends))


if __name__ == "__main__":
    main()

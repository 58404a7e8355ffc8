"""Proof of speed that anybody can rerun, with and without a GPU.

python -m bench              everything this machine can show
python -m bench PART --help  one part of it
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

PARTS = {  # the quick ones first
    "host": "Python's time from a layer's call to its launches; needs no GPU",
    "static": "what the compilers make of each kernel, for four targets; needs no GPU",
    "instructions": "what compiled kernels execute, and what a model of a GPU makes of it; needs no GPU",
    "ledger": "bytes moved and kernels launched, counted in Triton's interpreter; needs no GPU",
    "speed": "device and end-to-end time against torch and every installed peer; needs a GPU",
    "models": "training steps of five networks before and after normreg.replace; timed on a GPU",
}
SMOKE = "whether every kernel launches and agrees with float64: in the interpreter, or a minute on a GPU"
PASS = "five minutes on a machine with a GPU: smoke, the kernel tests, the cases of speed that decide"
HOMES = {"smoke": "bench.smoke", "gpu": "bench.gpu_pass"}  # those that are not in bench/perf
BUDGET_WITHOUT_GPU = 270  # seconds


def add_options(parser, **defaults):
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="begin nothing that would end later", **defaults
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write a JSON file an operation", **defaults)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object a line, not tables", **defaults
    )
    parser.add_argument("--commit", help="the commit to note where there is no git", **defaults)
    parser.add_argument("--operations", nargs="+", metavar="NAME", help="only these", **defaults)


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    subparsers = parser.add_subparsers(dest="part", metavar="PART")
    for name, description in {**PARTS, "smoke": SMOKE}.items():
        subparser = subparsers.add_parser(name, help=description, description=description)
        add_options(subparser, default=argparse.SUPPRESS)  # given before the part's name they hold as well
        if name in sys.argv:
            load(name).add_arguments(subparser)
    gpu = subparsers.add_parser("gpu", help=PASS, description=PASS)
    if "gpu" in sys.argv:
        load("gpu").add_arguments(gpu)
    report = subparsers.add_parser("report", help="tables and plots from the committed results")
    if "report" in sys.argv:
        load("report").add_arguments(report)
    return parser.parse_args()


def load(part):
    """The part's module. Triton reads whether to interpret when kernels are defined, so it is said before."""
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.pop("NORMREG_CPU_KERNELS", None)
    if part == "ledger" or (part in ("models", "smoke") and not has_gpu()):
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        return importlib.import_module(HOMES.get(part, f"bench.perf.{part}"))
    except ModuleNotFoundError as error:
        sys.exit(f"python -m bench {part} needs {error.name}, not installed here: pip install -e '.[bench]'")


def has_gpu():
    import torch

    return torch.cuda.is_available()


def run_part(arguments):
    module = load(arguments.part)
    from bench.perf import harness  # after load: it imports Triton

    if unknown := set(arguments.operations or ()) - set(module.OPERATIONS):
        sys.exit(
            f"--operations: {', '.join(sorted(unknown))}: expected some of {', '.join(module.OPERATIONS)}"
        )
    budget, records = harness.Budget(arguments.budget), []
    messages = sys.stderr if arguments.json else sys.stdout
    try:
        for record in module.run(arguments, budget):
            records.append(record)
            if arguments.json:
                print(json.dumps(record), flush=True)
    finally:  # a crash does not cost what was measured before it
        if arguments.out:
            environment = harness.environment(arguments.commit)
            for path in harness.write(arguments.out, arguments.part, records, budget.left_out, environment):
                print(f"written: {path}", file=messages)
    if not arguments.json:
        print(f"## {arguments.part}: {module.CAPTION}\n\n{module.table(records)}\n")
    if budget.left_out:
        print(f"left out, because the budget was spent: {'; '.join(budget.left_out)}", file=messages)
    return module.status(records) if hasattr(module, "status") else 0


def run_all(arguments):
    """A process for each part, because some interpret the kernels and some compile them."""
    gpu = has_gpu()
    budget = arguments.budget or (None if gpu else BUDGET_WITHOUT_GPU)
    begin = time.monotonic()
    for part in PARTS:
        if part in ("speed", "models") and not gpu:
            continue
        if part == "models" and arguments.operations:
            continue  # it has networks, not operations
        command = [sys.executable, "-m", "bench", part]
        if budget is not None:
            command += ["--budget", str(max(0.0, budget - (time.monotonic() - begin)))]
        for option in ("out", "commit"):
            if getattr(arguments, option):
                command += [f"--{option}", str(getattr(arguments, option))]
        command += ["--json"] * arguments.json
        if arguments.operations:
            command += ["--operations", *arguments.operations]
        if status := subprocess.run(command).returncode:
            return status
    if not gpu:
        print(
            "speed and models: not measured. They need a GPU, and none was found.",
            file=sys.stderr if arguments.json else sys.stdout,
        )
    return 0


def main():
    arguments = parse_arguments()
    if arguments.part is None:
        return run_all(arguments)
    if arguments.part in ("report", "gpu"):
        return load(arguments.part).run(arguments)
    if arguments.part == "speed" and not has_gpu():
        print("speed: not measured. It needs a GPU, and none was found.", file=sys.stderr)
        return 2
    return run_part(arguments)


if __name__ == "__main__":
    sys.exit(main())

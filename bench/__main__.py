"""Proof of speed that anybody can rerun, with and without a GPU.

python -m bench              everything that this machine can measure, a part at a time
python -m bench PART --help  one part of it, and its options
"""

import argparse
import importlib
import json
import os
import sys
import textwrap
import time
from pathlib import Path

from bench.harness import interrupts
from bench.harness.requirements import imports_of

PARTS = {  # the quick ones first
    "host": "Python's time from a layer's call to its launches; needs no GPU",
    "static": "what the compilers make of each kernel, for four targets; needs no GPU",
    "instructions": "what compiled kernels execute, and what a model of a GPU makes of it; needs no GPU",
    "ledger": "bytes moved and kernels launched, with the grids of an H100; needs no GPU",
    "exactness": "errors of results and gradients against float64, over torch's own; needs no GPU",
    "speed": "device and end-to-end time against torch and every installed peer; needs a GPU",
    "models": "training steps of five networks before and after normreg.replace; timed on a GPU",
}
OTHERS = {
    "smoke": "whether every kernel launches and agrees with float64: interpreted, or a minute on a GPU",
    "grids": "multiprocessors of an H100 that each launch of a backward has a program for; launches nothing",
    "chain": "bytes and launches of torch's operators in place of a fused call, at least; needs no GPU",
    "first_step": "seconds of a first training step under Inductor, and sizes of its programs; needs no GPU",
    "gpu": "five minutes on a machine with a GPU: smoke, the kernel tests, the cases of speed that decide",
    "report": "tables and plots from the committed results",
}
COMMANDS = {  # which parse their own arguments, also as python -m bench.<name>
    "demo": "the main job: two torch.nn models trained beside the same two on normreg's layers; a minute",
    "study": "six experiments on normalisation and regularisation; four and a half minutes on two cores",
    "ranks": "the demo's convolutional network on several ranks, started by torchrun",
}
COMMAND_HOMES = {"demo": "bench.demo.__main__", "study": "bench.study.__main__", "ranks": "bench.ranks"}
HOMES = {"smoke": "bench.smoke", "gpu": "bench.gpu_pass", "report": "bench.report"}  # PARTS are in bench.perf
BUDGET_WITHOUT_GPU = 270  # seconds
OPTIONS = {
    "--budget": dict(
        type=float,
        metavar="SECONDS",
        help=f"begin nothing that would end later (default: no limit; {BUDGET_WITHOUT_GPU} for all parts "
        "together without a GPU)",
    ),
    "--out": dict(type=Path, metavar="DIR", help="folder to write results to (default: only print them)"),
    "--json": dict(action="store_true", help="print JSON, an object a line, in place of tables"),
    "--commit": dict(metavar="HASH", help="commit to note in results (default: what git says)"),
    "--operations": dict(nargs="+", metavar="NAME", help="only these, such as layer_norm (default: all)"),
}
OPTIONS_OF = {  # of those that write what they find themselves; all other parts take all options
    "first_step": (),
    "gpu": ("--commit",),
    "report": (),
}


def add_options(parser, names=OPTIONS, **defaults):
    for name in names:
        parser.add_argument(name, **OPTIONS[name], **defaults)


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    subparsers, parsers = parser.add_subparsers(dest="part", metavar="PART"), {}
    for name, description in {**PARTS, **OTHERS}.items():
        parsers[name] = subparsers.add_parser(name, help=description, description=description)
        # without defaults, which would replace what is given before the part's name
        add_options(parsers[name], OPTIONS_OF.get(name, OPTIONS), default=argparse.SUPPRESS)
    for name, description in COMMANDS.items():
        subparsers.add_parser(name, help=description)
    without_help = [argument for argument in sys.argv[1:] if argument not in ("-h", "--help")]
    part = parser.parse_known_args(without_help)[0].part
    if part in COMMANDS:
        parser.error(f"expected no option before {part}, which has its own: python -m bench {part} --help")
    if part is not None:
        load(part).add_arguments(parsers[part])
    return parser.parse_args()


def run_command(name, arguments):
    with imports_of(f"python -m bench {name}"):
        return importlib.import_module(COMMAND_HOMES[name]).main(arguments)


def load(part):
    """Imports the part's module, with TRITON_INTERPRET as the part needs it: kernels read it when defined."""
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.pop("NORMREG_CPU_KERNELS", None)
    asked = part == "exactness" and "--interpreter" in sys.argv
    if (asked or part in ("models", "smoke")) and not has_gpu():
        os.environ["TRITON_INTERPRET"] = "1"
    with imports_of(f"python -m bench {part}"):
        return importlib.import_module(HOMES.get(part, f"bench.perf.{part}"))


def has_gpu():
    import torch

    return torch.cuda.is_available()


def run_part(arguments):
    module = load(arguments.part)
    from bench.harness import result_files  # after load: it imports Triton
    from bench.harness.budget import Budget

    if unknown := set(arguments.operations or ()) - set(module.OPERATIONS):
        sys.exit(
            f"--operations: {', '.join(sorted(unknown))}: expected some of {', '.join(module.OPERATIONS)}"
        )
    budget, records = Budget(arguments.budget), []
    messages = sys.stderr if arguments.json else sys.stdout
    try:
        for record in module.run(arguments, budget):
            records.append(record)
            if arguments.json:
                print(json.dumps(record), flush=True)
    except KeyboardInterrupt:
        if records and not arguments.json:
            print(module.table(records))
        raise
    finally:  # a crash does not cost the results before it
        if arguments.out:
            environment = result_files.environment(arguments.commit)
            given = arguments.out, arguments.part, records, budget.left_out, environment
            for path in result_files.write(*given):
                print(f"written: {path}", file=messages)
    if not arguments.json:
        from bench.harness.tables import WIDTH

        heading = textwrap.fill(f"## {arguments.part}: {module.CAPTION}", WIDTH)
        print(f"{heading}\n\n{module.table(records)}\n")
    if budget.left_out:
        print(f"left out, because the budget was spent: {'; '.join(budget.left_out)}", file=messages)
    return module.status(records) if hasattr(module, "status") else 0


def run_all(arguments):
    """Runs each part in a process of its own, because some interpret the kernels and some compile them."""
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
        if status := interrupts.run(command):
            return status
    if not gpu:
        print(
            "speed and models: not measured. They need a GPU, and none was found.",
            file=sys.stderr if arguments.json else sys.stdout,
        )
    return 0


def main():
    if sys.argv[1:] and sys.argv[1] in COMMANDS:
        return run_command(sys.argv[1], sys.argv[2:])
    arguments = parse_arguments()
    if arguments.part is None:
        return run_all(arguments)
    if arguments.part in OPTIONS_OF:
        return load(arguments.part).run(arguments)
    if arguments.part == "speed" and not has_gpu():
        print("speed: not measured. It needs a GPU, and none was found.", file=sys.stderr)
        return 2
    return run_part(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""Runs bench.study in a folder, where depth is done at once and shift never, for a test to press Ctrl-C."""

import sys
import time

from bench.harness import interrupts
from bench.study import __main__ as study


def run_task(task):
    name, seed, _ = task
    if name == "shift":
        time.sleep(600)
    return {"seed": seed}, 0.0


if __name__ == "__main__":
    interrupts.install()
    study.run_task = run_task
    study.main(["--only", "depth", "shift", "--seeds", "2", "--out", sys.argv[1], "--workers", sys.argv[2]])

"""Proof of speed and exactness: what normreg moves, computes and takes, with and without a GPU.

harness     budget, progress, results and processes: what all parts run with
operations  what is measured, a file an operation
perf        the parts of `python -m bench` that measure
report      tables and plots from the results that are committed
smoke       whether every kernel launches and agrees with float64
gpu_pass    one pass on a machine with a GPU: smoke, kernel tests, speed
lab         what stands in for a GPU
demo        the main job: two networks trained on torch.nn's layers and on normreg's
study       experiments on normalisation and regularisation
"""

import sys
from pathlib import Path

from bench.harness import interrupts

ROOT = Path(__file__).parents[1]  # the checkout
if sys.argv[0] == "-m":  # a command begins, with imports that take seconds
    interrupts.install()

"""Runs the parts of `bench` that compile, with results in a folder; then frees what a stub driver compiled.

Python prints what fails in the latter instead of raising it.
"""

import gc
import os
import sys

import torch

from bench import __main__
from bench.lab import stub_driver
from normreg.kernels import group_norm, launch
from normreg.kernels.group_norm.tile import group_norm_forward_kernel


def run(*arguments):
    sys.argv[:] = ["python -m bench", *arguments]
    assert __main__.main() == 0


def run_parts(out):
    run("static", "--operations", "instance_norm", "--targets", "sm_90", "--dtypes", "fp32")
    run("host", "--operations", "instance_norm", "--out", out, "--commit", "abc")


def free_what_a_stub_compiled():
    launch.forget()
    record = stub_driver.install()
    group_norm.group_norm_forward(torch.zeros(2, 4, 8), None, None, 2, 1e-5, torch.float32, False)
    assert record.compiled == [name for name, _ in record.launched] == ["group_norm_forward_kernel"]
    launch.forget()
    group_norm_forward_kernel.device_caches.clear()
    gc.collect()


if __name__ == "__main__":
    os.sched_getaffinity = lambda process: {0}  # static has one process compile: each takes seconds to begin
    run_parts(sys.argv[1])
    free_what_a_stub_compiled()

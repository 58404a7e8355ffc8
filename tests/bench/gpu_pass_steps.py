"""Steps of the pass on a GPU that are stand-ins."""

import sys

import programs

from bench.gpu_pass import steps as gpu_steps

SUITES = programs.FOLDER / "suites"


def python(source):
    return [sys.executable, "-c", source]


def step(name, source, limit_s=20, **given):
    return gpu_steps.Step(name, python(source), limit_s, f"{name}.log", **given)

"""Six experiments on normalisation and regularisation, with normreg's layers on scikit-learn's data.

Each experiment is a file with a name in NAMES, and has its results and its figure beside it. They share
experiment (how a claim is judged), data, training, drawing, tasks (a seed of an experiment, in a process)
and page, which writes README.md.
"""

import importlib

NAMES = ("depth", "fully_connected", "generalisation", "shift", "landscape", "interactions")


def by_name(name):
    return importlib.import_module(f"bench.study.{name}")

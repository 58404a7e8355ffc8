"""Six experiments on normalisation and regularisation, with normreg's layers on scikit-learn's data."""

import importlib

NAMES = ("depth", "fully_connected", "generalisation", "shift", "landscape", "interactions")


def by_name(name):
    return importlib.import_module(f"bench.study.{name}")

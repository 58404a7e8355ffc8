"""The operations: a file each, which declares what bench and tests have to know about it.

A file in this folder that has an OPERATION is found. DECLARED has all of them, OPERATIONS what is measured
of those that have a layer.
"""

import importlib
import pkgutil
from types import SimpleNamespace

import torch.nn.functional as F

import normreg

from .case import Case
from .operation import Measured, Operation

MODULES = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
DECLARED = {module.OPERATION.name: module.OPERATION for module in MODULES if hasattr(module, "OPERATION")}
OPERATIONS = {name: one.measured.of(name) for name, one in DECLARED.items() if one.measured}
FUNCTIONS = {key: example for one in DECLARED.values() for key, example in one.examples().items()}
# the functions by name, normreg's and what they compute in torch's operations
OURS = SimpleNamespace(
    l2_penalty=normreg.l2_penalty,
    **{name: getattr(normreg.functional, name) for name in normreg.functional.__all__},
)
FORMULAS = {name: formula for one in DECLARED.values() for name, formula in one.formulas.items()}
TORCH = SimpleNamespace(
    **{name: FORMULAS.get(name) or getattr(F, name) for name in {e.name for e in FUNCTIONS.values()}}
)

__all__ = [
    "DECLARED", "FUNCTIONS", "OPERATIONS", "OURS", "TORCH", "Case", "Measured", "Operation", "cases"
]  # fmt: skip


def cases(proof, names=None):
    """The cases of one kind of proof, operations in turn, so that a budget cuts from all alike."""
    placed = []
    for position, name in enumerate(names or OPERATIONS):
        own = getattr(OPERATIONS[name], proof)
        placed += [(number / len(own), position, case) for number, case in enumerate(own)]
    return [case for *_, case in sorted(placed, key=lambda entry: entry[:2])]

"""The operations that are measured: a file each, with its layer, its least traffic and its shapes."""

from . import batch_norm, dropout, layer_norm
from .case import Case, Operation

OPERATIONS = {
    operation.name: operation for operation in (layer_norm.OPERATION, batch_norm.OPERATION, dropout.OPERATION)
}

__all__ = ["OPERATIONS", "Case", "Operation", "cases"]


def cases(proof, names=None):
    """The cases of one kind of proof, operations in turn, so that a budget cuts from all alike."""
    placed = []
    for position, name in enumerate(names or OPERATIONS):
        own = getattr(OPERATIONS[name], proof)
        placed += [(number / len(own), position, case) for number, case in enumerate(own)]
    return [case for *_, case in sorted(placed, key=lambda entry: entry[:2])]

"""The operations that are measured: a file each, with its layer, its least traffic and its shapes."""

from . import (
    batch_norm,
    batch_norm_act,
    bias_act_dropout,
    dropout,
    dropout_add,
    dropout_add_norm,
    group_norm,
    instance_norm,
    layer_norm,
    layer_norm_channels,
    rms_norm,
)
from .case import Case, Operation

OPERATIONS = {
    module.OPERATION.name: module.OPERATION
    for module in (
        layer_norm,
        rms_norm,
        layer_norm_channels,
        batch_norm,
        batch_norm_act,
        group_norm,
        instance_norm,
        dropout,
        dropout_add,
        dropout_add_norm,
        bias_act_dropout,
    )
}

__all__ = ["OPERATIONS", "Case", "Operation", "cases"]


def cases(proof, names=None):
    """The cases of one kind of proof, operations in turn, so that a budget cuts from all alike."""
    placed = []
    for position, name in enumerate(names or OPERATIONS):
        own = getattr(OPERATIONS[name], proof)
        placed += [(number / len(own), position, case) for number, case in enumerate(own)]
    return [case for *_, case in sorted(placed, key=lambda entry: entry[:2])]

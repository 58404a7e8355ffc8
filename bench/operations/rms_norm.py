"""RMSNorm: the rows of LayerNorm."""

from dataclasses import replace

from . import layer_norm
from .case import Operation

NAME = "rms_norm"


def layer(library, case, **options):
    return library.RMSNorm(case.shape[-1], **options).train(case.training)


def of_layer_norm(proof):
    return tuple(replace(case, operation=NAME) for case in getattr(layer_norm.OPERATION, proof))


OPERATION = Operation(
    name=NAME,
    layer=layer,
    passes=layer_norm.OPERATION.passes,
    ledger=of_layer_norm("ledger"),
    static=of_layer_norm("static"),
    host=of_layer_norm("host"),
    speed=of_layer_norm("speed"),
)

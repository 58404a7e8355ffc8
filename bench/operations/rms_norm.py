"""RMSNorm: the rows of LayerNorm."""

from dataclasses import replace

from . import layer_norm
from .case import Operation

NAME = "rms_norm"


def layer(library, case, **options):
    return library.RMSNorm(case.shape[-1], **options).train(case.training)


def of_layer_norm(proof, widths=None):
    """LayerNorm's cases, of some widths only where the same kernels would be looked at twice."""
    own = getattr(layer_norm.OPERATION, proof)
    return tuple(replace(case, operation=NAME) for case in own if not widths or case.shape[-1] in widths)


OPERATION = Operation(
    name=NAME,
    layer=layer,
    passes=layer_norm.OPERATION.passes,
    ledger=of_layer_norm("ledger", widths=(4096, 16384, 65536)),
    static=of_layer_norm("static", widths=(64, 4096, 16384, 65536)),
    instructions=of_layer_norm("instructions", widths=(1024, 4096, 16384)),
    host=of_layer_norm("host"),
    speed=of_layer_norm("speed"),
)

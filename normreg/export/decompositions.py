"""`decomposition_table`: the operators of `torch.ops.normreg` in torch's own operations."""

from collections.abc import Callable
from typing import Any

from torch._ops import OpOverload

from normreg.ops.decomposition import DECOMPOSITIONS


def decomposition_table() -> dict[OpOverload, Callable[..., Any]]:
    """Every operator of `torch.ops.normreg`, with a function of the same arguments in torch's operations.

    A new dict each time, for whatever takes decompositions. So that a program runs without normreg:

        program = torch.export.export(model, inputs).run_decompositions(normreg.decomposition_table())

    and to have its operations in torch's core operators as well:

        table = torch.export.default_decompositions()
        table.update(normreg.decomposition_table())
        program = program.run_decompositions(table)

    Backward operators are there, too, for `aot_autograd(decompositions=...)`. A graph that torch.compile has
    made within `normreg.recorded_as("operators")` can be traced again, by
    `make_fx(graph, decomposition_table=...)`, except for operators that update running statistics, around
    which AOTAutograd has put another.

    Functions return what the operators do, in the same dtypes and strides, compute in float32 (float64 of
    float64), and update running statistics in place. Dropout drops the same elements for the same seed.
    """
    return dict(DECOMPOSITIONS)

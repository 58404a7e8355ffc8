"""What a graph holds in the place of a call of an operator, once it is to change nothing in place."""

from collections.abc import Callable, Mapping
from typing import Any

from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.fx.experimental import proxy_tensor

from normreg.ops import untranslated


def made_functional(
    mode: FunctionalTensorMode, operator: Any, types: Any, inputs: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """The results of a call, recorded: by the decomposition that was asked for, else by the operator.

    Asked here, because torch wraps an operator that updates its arguments before it asks the table.
    """
    decomposition = untranslated.asked(decompositions().get(operator), inputs, options)
    if decomposition is None:
        return mode.__torch_dispatch__(operator, types, inputs, options)
    with mode:
        return decomposition(*inputs, **options)


def decompositions() -> Mapping[Any, Callable[..., Any]]:
    """The table that the trace was given which is being made, as by `run_decompositions(table)`."""
    trace = proxy_tensor.get_proxy_mode()
    if trace is None:
        return {}
    try:
        return trace.decomposition_table
    except AttributeError:  # before torch 2.12
        table: Mapping[Any, Callable[..., Any]] = vars(proxy_tensor)["CURRENT_DECOMPOSITION_TABLE"]
        return table

"""What every operator is in torch's operations alone, for programs that are to run without this package."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from normreg.ops.schema import arguments, picker

DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {}  # by the operator


def register(operator: Any, fake: Callable[..., Any], function: Callable[..., Any]) -> None:
    """Makes `function`, of arguments that it picks by their names, the operator's decomposition.

    It may find more than the operator returns, in other dtypes and strides: those of results are the fake's.
    """
    names = [argument.name for argument in operator._schema.arguments]
    pick = picker(arguments(function), names)

    def decomposed(*inputs: Any, **options: Any) -> Any:
        inputs = *inputs, *[options[name] for name in names[len(inputs) :]]
        results, found = fake(*inputs), function(*pick(inputs))
        if not isinstance(results, tuple):
            return as_in(results, found)
        return tuple([as_in(*pair) for pair in zip(results, found, strict=True)])

    DECOMPOSITIONS[operator] = decomposed


def as_in(result: Tensor | None, found: Tensor | None) -> Tensor | None:
    """What was found, in the dtype and strides of an empty tensor; None where there is none."""
    if result is None or found is None:
        return None
    found = found.to(result.dtype)
    return found if found.stride() == result.stride() else result.copy_(found)

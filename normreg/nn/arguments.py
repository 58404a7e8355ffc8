"""Checks of constructors that torch.nn does not have: each error says what to pass."""

import functools
import numbers
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import Tensor

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def instead(**hints: str) -> Callable[[Constructor], Constructor]:
    """A decorator of a constructor: the arguments of other layers that this one does not take.

    hints: for each name what is to be done; {} stands for the value that was given.
    """

    def decorate(constructor: Constructor) -> Constructor:
        @functools.wraps(constructor)
        def checked(self: Any, *arguments: Any, **options: Any) -> None:
            for name in options.keys() & hints.keys():
                raise TypeError(
                    f"{type(self).__name__} expected arguments of its own, got {name}={options[name]!r}: "
                    f"{hints[name].format(repr(options[name]))}"
                )
            constructor(self, *arguments, **options)

        return cast(Constructor, checked)

    return decorate


def probability(name: str, p: Any) -> Any:
    """p, which is a number between 0 and 1, or a tensor of one; raises ValueError for anything else."""
    is_number = isinstance(p, numbers.Real) or (isinstance(p, Tensor) and p.numel() == 1)
    if not is_number or not 0 <= p <= 1:  # NaN, too
        raise ValueError(
            f"expected {name} to be a number between 0 and 1, got {p!r}: it is how probable a zero is, as 0.1"
        )
    return p

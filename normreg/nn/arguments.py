"""What constructors share: arguments that torch.nn does not have, and what to pass in place of others'."""

import functools
import inspect
import numbers
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from normreg.functional.output_dtype import check_out_dtype
from normreg.kernels.dtypes import FLOAT8

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def instead(**hints: str) -> Callable[[Constructor], Constructor]:
    """A decorator of a constructor: the arguments of other layers that this one does not take.

    hints: for each name what is to be done; {} stands for the value that was given.
    """

    def decorate(constructor: Constructor) -> Constructor:
        kinds = {name: p.kind for name, p in inspect.signature(constructor).parameters.items()}
        by_position = sum(kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for kind in kinds.values()) - 1
        by_name = [name for name, kind in kinds.items() if kind is inspect.Parameter.KEYWORD_ONLY]

        @functools.wraps(constructor)
        def checked(self: Any, *arguments: Any, **options: Any) -> None:
            if len(arguments) > by_position and by_name:
                raise TypeError(
                    f"{type(self).__name__} expected {by_position} of its arguments by position, got "
                    f"{', '.join(map(repr, arguments))}: pass {', '.join(by_name)} by name"
                )
            for name in options.keys() & hints.keys():
                raise TypeError(
                    f"{type(self).__name__} has no argument {name}, got {name}={options[name]!r}: "
                    f"{hints[name].format(repr(options[name]))}"
                )
            constructor(self, *arguments, **options)

        return cast(Constructor, checked)

    return decorate


OF_ACTIVATIONS = dict(
    inplace="leave it out, the activation makes no tensor of its own",
    act_layer="pass act=, the name of the activation",
    activation="pass act=, the name of the activation",
    apply_act="pass act=None for none",
)


def check_eps(layer: Any, place: str, eps: Any, *before: Any) -> None:
    """Raises TypeError for an eps that is not a number, such as an activation that is not passed by name."""
    if not isinstance(eps, (numbers.Real, Tensor)):
        example = ", ".join(map(repr, before))
        raise TypeError(
            f"expected eps, the {place} argument, to be a number, got {eps!r}: pass an activation "
            f"by name, {type(layer).__name__}({example}, act='relu')"
        )


def activation_repr(act: str | None, negative_slope: float) -> str:
    """What the repr of a layer says of its activation."""
    slope = f", negative_slope={negative_slope}" if act == "leaky_relu" else ""
    return f"act={act!r}{slope}"


def probability(name: str, p: Any) -> Any:
    """p, which is a number between 0 and 1, or a tensor of one; raises ValueError for anything else."""
    is_number = isinstance(p, numbers.Real) or (isinstance(p, Tensor) and p.numel() == 1)
    if not is_number or not 0 <= p <= 1:  # NaN, too
        raise ValueError(
            f"expected {name} to be a number between 0 and 1, got {p!r}: pass a probability, such as 0.1"
        )
    return p


def check_dimensions(layer: Any, x: Tensor, dimensions: int, of_rows: str) -> None:
    """Raises ValueError for an x of another number of dimensions. of_rows: the layer for (N, C)."""
    if x.dim() != dimensions:
        no_batch = x.dim() == dimensions - 1
        remedy = "add the batch with x.unsqueeze(0)" if no_batch else f"of (N, C), take {of_rows}"
        raise ValueError(
            f"{type(layer).__name__} expected an input of {dimensions} dimensions, (N, C, *), got "
            f"shape {list(x.shape)}: {remedy}"
        )


def bias_option(bias: bool) -> dict[str, bool]:
    """The option that only newer versions of torch's layers have, unless it has its default."""
    return {} if bias else {"bias": False}


class OutDtype:
    """A base beside a norm of torch.nn: its result may have another dtype, `out_dtype`."""

    out_dtype: torch.dtype | None = None  # the layer's own where it was given one

    def _set_out_dtype(self, out_dtype: torch.dtype | None, may_be_float8: bool = False) -> None:
        if out_dtype is not None:
            in_float8 = may_be_float8 and out_dtype == FLOAT8
            self.out_dtype = out_dtype if in_float8 else check_out_dtype(out_dtype)

    def extra_repr(self) -> str:
        asked = f", out_dtype={self.out_dtype}" if self.out_dtype else ""
        return super().extra_repr() + asked  # type: ignore[misc]  # the norm's

"""Derives operator schemas from annotations."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, get_args

import torch
from torch import Tensor

Seed: TypeAlias = Tensor | int  # an int in eager mode, a tensor where calls are recorded and replayed
SCHEMA_TYPES = {Seed: Tensor, Seed | None: Tensor | None}  # in place of what a schema cannot say


def arguments(function: Callable[..., Any]) -> dict[str, Any]:
    """{name: type in a schema} of the parameters without a default."""
    function = getattr(function, "run", function)  # of an `Operator`
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return {p.name: SCHEMA_TYPES.get(p.annotation, p.annotation) for p in parameters if p.default is p.empty}


def schema(function: Callable[..., Any], results: Sequence[str], mutates: Sequence[str]) -> str:
    """The function's signature as an operator's. Results are called Tensor, though they may be None."""

    def prototype() -> None: ...

    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
        for name, kind in arguments(function).items()
    ]
    signature = inspect.Signature(parameters, return_annotation=None)
    prototype.__signature__ = signature  # type: ignore[attr-defined]
    without_results = torch.library.infer_schema(prototype, mutates_args=mutates).removesuffix("()")
    return without_results + f"({', '.join(f'Tensor {result}' for result in results)})"


def is_tensor(kind: Any) -> bool:
    return kind is Tensor or Tensor in get_args(kind)

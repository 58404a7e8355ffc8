"""Derives operator schemas from annotations, and picks arguments by their names."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, TypeAlias, get_args

import torch
from torch import Tensor

Values: TypeAlias = tuple[Any, ...]
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


def places(names: Iterable[str], known: Sequence[str]) -> list[int]:
    return [known.index(name) for name in names]


def picker(names: Iterable[str], known: Sequence[str]) -> Callable[[Sequence[Any]], Values]:
    """A function that picks the values of the names from those of all known names."""
    chosen = places(names, known)
    return itemgetter(*chosen) if len(chosen) > 1 else lambda values: tuple([values[i] for i in chosen])

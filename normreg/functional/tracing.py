"""What torch.fx records in the place of our functions and layers."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.fx

Function = TypeVar("Function", bound=Callable[..., Any])


def one_call_when_traced(function: Function) -> Function:
    """Makes torch.fx record the call itself: it cannot trace the inside, which asks for shapes."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if arguments and isinstance(arguments[0], torch.fx.Proxy):
            return arguments[0].tracer.create_proxy("call_function", call, arguments, options)
        return function(*arguments, **options)

    return cast(Function, call)


def leaf_call(layer: torch.nn.Module, *inputs: Any) -> Any:
    """Makes torch.fx record the call of a layer on proxies itself, as it does for torch.nn's layers."""
    tracer = inputs[0].tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), inputs, {})

"""What torch.fx records where a module calls one of our functions."""

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

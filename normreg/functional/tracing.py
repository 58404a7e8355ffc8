"""What torch.fx records in the place of our functions and layers."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.fx

Function = TypeVar("Function", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)


def one_call_when_traced(function: Function) -> Function:
    """Makes torch.fx record the call itself: it cannot trace the inside, which asks for shapes."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if arguments and isinstance(arguments[0], torch.fx.Proxy):
            return arguments[0].tracer.create_proxy("call_function", call, arguments, options)
        return function(*arguments, **options)

    return cast(Function, call)


class _Home(str):
    """The module of a class, in whose place an instance names torch.nn.

    A tracer takes a layer as a leaf where `layer.__module__` begins with that; the class itself, which
    pickle and `inspect` ask, says where it stands.
    """

    def __get__(self, layer: Any, cls: type) -> str:
        return self if layer is None else "torch.nn"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return str, (str(self),)  # pickle's newer protocols write the module of a class as they find it


def leaf(cls: Class) -> Class:
    """A decorator: torch.fx records the call of such a layer, as of torch.nn's, and traces nothing inside."""
    cls.__module__ = _Home(cls.__module__)
    return cls

"""Frozen layers: of a class derived from their own, in which they compute as in evaluation.

What a layer is frozen with lies in its attributes, so that copies have it, and a class that another tool
derived since is thawed with it: without that attribute a derived class changes nothing.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

MARK = "_frozen_parameters"  # names of the parameters whose requires_grad was taken away


class Frozen:
    """The base of what frozen layers become: classes derived from their own, `thawed`."""

    thawed: type
    __jit_unused_properties__ = ("training",)  # torch.jit.script asks for its value

    def __init_subclass__(cls, **options: Any) -> None:
        """Hides from the layer's class, which may keep a list of those derived from it, that it has one."""

    @property
    def training(self) -> bool:
        # the flag that train() and eval() set is kept beside it, for afterwards
        attributes = vars(self)
        return MARK not in attributes and attributes["training"]

    @training.setter
    def training(self, mode: bool) -> None:
        vars(self)["training"] = mode

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # a derived class cannot be imported
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        make, arguments, *state = reduced
        own = type(self)
        known = tuple(own.thawed if argument is own else argument for argument in arguments)
        return _made, (make, known), *state


def _made(make: Callable[..., torch.nn.Module], arguments: tuple[Any, ...]) -> torch.nn.Module:
    """A layer before it gets its attributes, as pickle makes it."""
    layer = make(*arguments)
    layer.__class__ = frozen(type(layer))
    return layer


@functools.cache
def _derived(cls: Any) -> type:
    # in all that a class says of itself it is the same one
    names = dict(thawed=cls, __module__=cls.__module__, __qualname__=cls.__qualname__, __doc__=cls.__doc__)
    return type(cls.__name__, (Frozen, cls), names)


def frozen(cls: Any) -> type:
    """The class of frozen layers of this class."""
    return _derived(cls)


def thawed(cls: type) -> type:
    """The class that a class of frozen layers was derived from; every other is its own."""
    found: type = vars(cls).get("thawed", cls) if issubclass(cls, Frozen) else cls
    return found


def is_frozen(layer: torch.nn.Module) -> bool:
    """Whether the layer is frozen."""
    return isinstance(layer, Frozen) and MARK in vars(layer)


def training_flag(module: torch.nn.Module) -> bool:
    """What train() or eval() said last, of a frozen layer, too."""
    flag: bool = vars(module).get("training", module.training)
    return flag


def freeze(layer: torch.nn.Module, parameters: tuple[str, ...]) -> None:
    """Freezes a layer, and takes the requires_grad of these parameters of it."""
    cls: Any = type(layer)
    if cls.__module__ == torch.nn.utils.parametrize.__name__ and not issubclass(cls, Frozen):
        # the class of one layer, under which torch finds the class that it has without parametrizations
        cls.__bases__ = (frozen(cls.__base__),)
    elif not issubclass(cls, Frozen):
        layer.__class__ = frozen(cls)
    vars(layer)[MARK] = parameters
    for name in parameters:
        getattr(layer, name).requires_grad_(False)


def unfreeze(layer: torch.nn.Module) -> None:
    """Undoes `freeze`."""
    for name in vars(layer).pop(MARK):
        getattr(layer, name).requires_grad_()
    layer.__class__ = thawed(type(layer))

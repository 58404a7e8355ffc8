"""Which class a layer gets from `replace`: normreg's counterpart of its torch.nn class, or a derived class.

Layers of other libraries are known by the import path of their class; nothing is imported. Such a layer gets
a class derived from its own, with the forward that is registered here. Its name, its state_dict,
`isinstance` and everything else of it stay.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from normreg import nn
from normreg.functional.tracing import leaf
from normreg.models.naming import path_of
from normreg.nn.frozen import frozen, thawed

Forward = TypeVar("Forward", bound=Callable[..., Any])

FORWARDS: dict[str, Callable[..., Any]] = {}  # import path of a class: the forward that its layers get


def torch_class(ours: type) -> type | None:
    """The torch.nn class that a class of normreg.nn stands for, or None.

    It is the base class of the same name, or what the class itself declares as `counterpart`.
    """
    named = getattr(torch.nn, ours.__name__, None)
    derived = named is not None and issubclass(ours, named)
    return named if derived else vars(ours).get("counterpart")


OURS = [getattr(nn, name) for name in nn.__all__]
ORIGINALS = {ours: known for ours in OURS if (known := torch_class(ours)) is not None}
COUNTERPARTS = {known: ours for ours, known in ORIGINALS.items()}


class Foreign:
    """The base of what layers of other libraries become: classes derived from their own, `original`."""

    original: type

    def __init_subclass__(cls, **options: Any) -> None:
        """Hides from the library's class, which may keep a list of those derived from it, that it has one."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # a derived class has no import path of its own to be found by
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        return _new, (type(self).original,), *reduced[2:]


def _new(original: Any) -> Any:
    return original.__new__(foreign_counterpart(original) or original)


@functools.cache
def _derived(original: Any, forward: Callable[..., Any]) -> type:
    names = dict(forward=forward, original=original, __module__=__name__, __doc__=forward.__doc__)
    return leaf(type(original.__name__, (Foreign, original), names))


def foreign_counterpart(cls: Any) -> type | None:
    """The class that layers of exactly this class of another library get, or None."""
    forward = FORWARDS.get(path_of(cls))
    return None if forward is None or issubclass(cls, Foreign) else _derived(cls, forward)


def counterpart(cls: type) -> type | None:
    """The class that layers of exactly this class get, or None."""
    return _of_thawed(cls, lambda cls: COUNTERPARTS.get(cls) or foreign_counterpart(cls))


def original(cls: type) -> type | None:
    """The class that `cls` is the counterpart of or was derived from by `replace`, or None."""
    return _of_thawed(cls, _original)


def _original(cls: type) -> type | None:
    return ORIGINALS.get(cls) or (vars(cls).get("original") if issubclass(cls, Foreign) else None)


def class_name(cls: type) -> str:
    """The shortest path by which a class can be imported; of a class made at run time, its base's as well.

    A layer of another library that `replace` has changed is named by the function that computes it now.
    """
    if (own := thawed(cls)) is not cls:
        return f"{class_name(own)}, frozen"
    if issubclass(cls, Foreign) and "original" in vars(cls):
        return path_of(vars(cls)["forward"])
    parts = cls.__module__.split(".")
    for end in range(1, len(parts) + 1):
        home = ".".join(parts[:end])
        if home in sys.modules and vars(sys.modules[home]).get(cls.__name__) is cls:
            return f"{home}.{cls.__name__}"
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return path_of(cls) if found is cls else f"{cls.__name__}, derived from {class_name(cls.__mro__[1])}"


def _of_thawed(cls: type, find: Callable[[type], type | None]) -> type | None:
    """What `find` has for a class, or for the one that a class of frozen layers was derived from."""
    before = thawed(cls)
    found = find(before)
    return found if found is None or before is cls else frozen(found)


def as_before(module: torch.nn.Module, *inputs: Any, **options: Any) -> Any:
    """Calls the forward of the class that `replace` found, or that Hugging Face's `kernels` left as it was.

    Raises TypeError for a layer whose forward neither did change by a registered function.
    """
    cls: Any = type(module)
    if isinstance(module, Foreign):
        cls = cls.original
    elif not hasattr(cls, "kernel_layer_name"):
        raise TypeError(
            f"expected a layer of another library that normreg.replace has changed, got a "
            f"{class_name(cls)}: call as_before in functions that register_layer decorates"
        )
    return cls.forward(module, *inputs, **options)


def same_dtype(x: torch.Tensor, *tensors: torch.Tensor | None) -> bool:
    """Whether all tensors have x's dtype, which then is the result's, too; otherwise torch promotes."""
    return all(tensor is None or tensor.dtype == x.dtype for tensor in tensors)


def register_layer(*classes: type | str) -> Callable[[Forward], Forward]:
    """A decorator: layers of exactly these classes get the decorated function as their forward by `replace`.

    Args:
        classes: classes, or import paths of classes ("package.module.Class"), which are not imported.

    The function takes the layer and the inputs of its forward, and computes what the class computes, with
    `normreg.functional`; where it cannot, `normreg.as_before(module, *inputs)` calls the forward it replaces.
    Raises TypeError for what is neither a class nor an import path, or where no function is decorated.

    Equivalent::

        @normreg.register_layer("my_models.norms.ScaleNorm")
        def scale_norm(module, x):
            return normreg.functional.rms_norm(x, module.scale.shape, module.scale, module.eps)
    """
    paths = [path_of(each) if isinstance(each, type) else each for each in classes]
    for path in paths:
        if not isinstance(path, str) or "." not in path.strip("."):
            raise TypeError(
                f"expected classes or import paths such as 'package.module.Class', got {path!r}: pass the "
                f"class itself, or its module's name, a dot and its name"
            )
    if not paths:
        raise TypeError("expected at least one class or import path, got none: write @register_layer(MyNorm)")

    def register(forward: Forward) -> Forward:
        if not callable(forward):
            raise TypeError(
                f"expected a function (module, *inputs) that computes the layer, got {forward!r}: write "
                f"@register_layer(...) above its def"
            )
        FORWARDS.update(dict.fromkeys(paths, forward))
        return forward

    return register

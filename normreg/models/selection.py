"""Decides which layers `replace` changes: those that the caller chooses and that no tool has patched."""

import difflib
import fnmatch
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from normreg.models.naming import counted, summary_of
from normreg.models.registry import COUNTERPARTS, OURS, class_name, counterpart, original
from normreg.nn.frozen import thawed

Selector = str | type | Callable[[str, torch.nn.Module], bool]
Selection = Selector | Iterable[Selector]
Named = tuple[str, torch.nn.Module]

# The bases of layers of the same kinds, which are named in the report where they are left alone
FAMILIES = (
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.modules.dropout._DropoutNd,
)
# Names of other classes that are named there, too
LAYER_NAMES = re.compile("norm|drop(out|path|block)|stochasticdepth", re.IGNORECASE)
OVERRIDDEN = "its forward is overridden on the instance"


def _as_tuple(given: Selection) -> tuple[Any, ...]:
    return tuple(given) if isinstance(given, list | tuple | set | frozenset) else (given,)


def _chooses(selector: Selector, name: str, module: torch.nn.Module) -> bool:
    if isinstance(selector, str):
        return fnmatch.fnmatchcase(name, selector)
    if isinstance(selector, type):
        return isinstance(module, selector)
    return bool(selector(name, module))


def chooses(given: Selection, name: str, module: torch.nn.Module) -> bool:
    """Whether one of the selectors that `select` takes agrees."""
    return any(_chooses(selector, name, module) for selector in _as_tuple(given))


def _check(argument: str, selector: Any, layers: Sequence[Named], known: str) -> None:
    if not isinstance(selector, str | type) and not callable(selector):
        raise TypeError(
            f"expected {argument} to be a pattern of names, a class, a function (name, module) -> bool, or a "
            f"list of these, got {selector!r}: pass for example 'encoder.*' or torch.nn.LayerNorm"
        )
    if callable(selector) and not isinstance(selector, type):
        _check_binds(argument, selector)
        return  # may say no to everything
    if any(_chooses(selector, name, module) for name, module in layers):
        return
    names, classes = [name for name, _ in layers], [*dict.fromkeys(type(module) for _, module in layers)]
    if not layers:
        got, remedy = f"and the model has no layer {known}", "see that it is the model that you mean"
    elif isinstance(selector, type):
        got = f"and there is no {class_name(selector)} among the {counted(layers)} {known}"
        remedy = f"choose among {summary_of(map(class_name, classes))}"
    elif named := [cls for cls in classes if fnmatch.fnmatchcase(cls.__name__, selector)]:
        got = f"and {selector!r} is the name of a class; strings are patterns of the names of modules"
        remedy = f"pass the class, {argument}={class_name(named[0])}, or names such as {names[0]!r}"
    else:
        got = f"and {selector!r} matches none of the names of the {counted(layers)} {known}"
        inside = any(name.startswith(f"{selector}.") for name in names)
        near = difflib.get_close_matches(selector, names, n=3)
        which = "the nearest are" if near else "there are for example"
        those = f"{which} {', '.join(map(repr, near or names[:3]))}"
        remedy = f"{selector}.* has those inside it" if inside else those
    raise ValueError(f"expected {argument} to choose some layer {known}, {got}: {remedy}")


def _check_binds(argument: str, function: Callable[..., Any]) -> None:
    try:
        inspect.signature(function).bind("name", torch.nn.Identity())
    except TypeError as wrong:
        raise TypeError(
            f"expected {argument} to be a function of a name and a module, got one that is not ({wrong}): "
            f"write lambda name, module: ..."
        ) from None
    except ValueError:  # it has no signature
        pass


def _select(argument: str, given: Selection, layers: Sequence[Named], known: str) -> set[str]:
    """The names among `layers` that `given` chooses, of which each part has to choose one."""
    for selector in _as_tuple(given):
        _check(argument, selector, layers, known)
    return {name for name, module in layers if chooses(given, name, module)}


def why_not_chosen(
    layers: Sequence[Named],
    include: Selection | None,
    exclude: Selection | None,
    known: str = "that replace knows",
) -> dict[str, str]:
    """{name: reason} of the layers, (name, module) pairs, that the caller leaves alone.

    include, exclude: a pattern of names as `fnmatch` has them, a class, a function (name, module) -> bool, or
        a list of these, of which one has to agree.
    known: what the layers have in common, for errors.

    Raises TypeError for anything else, ValueError for a pattern or a class that chooses nothing.
    """
    reasons: dict[str, str] = {}
    if include is not None:
        included = _select("include", include, layers, known)
        reasons |= {name: "not included" for name, _ in layers if name not in included}
    if exclude is not None:
        reasons |= dict.fromkeys(_select("exclude", exclude, layers, known), "excluded")
    return reasons


def is_ours(module: torch.nn.Module) -> bool:
    """Whether a layer is of one of normreg's classes, or of one that `replace` has derived."""
    return thawed(type(module)) in OURS or original(type(module)) is not None


def is_known(module: torch.nn.Module) -> bool:
    """Whether a layer is normreg's, or of a class that `replace` changes."""
    return counterpart(type(module)) is not None or is_ours(module)


def replaceable(module: torch.nn.Module) -> bool:
    """Whether `replace` changes this module: of an exact type, and computing what its class is known for."""
    return counterpart(type(module)) is not None and _why_changed_by_others(module) is None


def why_not_replaced(module: torch.nn.Module) -> str | None:
    """The reason why a module that looks like a layer is left alone; None for all others."""
    cls = thawed(type(module))
    if counterpart(cls):
        return _why_changed_by_others(module)
    if is_ours(module):
        return None
    for known in COUNTERPARTS:
        if isinstance(module, known):
            return f"a subclass of {class_name(known)} may compute something else"
    if isinstance(module, FAMILIES):
        return "normreg has no counterpart"
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit: replace before" if LAYER_NAMES.search(module.original_name) else None
    home = cls.__module__
    if module._modules or home.startswith("torch.nn.utils") or not LAYER_NAMES.search(cls.__name__):
        return None
    theirs = home.startswith("torch.")
    return "normreg has no counterpart" if theirs else "an unknown class: see normreg.register_layer"


def _why_changed_by_others(module: torch.nn.Module) -> str | None:
    """What a tool that patches models did to this layer, or None."""
    cls = type(module)
    if "forward" in vars(module):
        return OVERRIDDEN
    libraries = {"torch", *map(_library, cls.__mro__)}
    if _library(cls.forward) not in libraries:
        return f"{cls.__name__}.forward was replaced by {_library(cls.forward)}"
    code = getattr(cls.forward, "__code__", None)
    for name in code.co_names if code else ():  # of methods and functions that it calls, among others
        for home, called in ((cls.__name__, getattr(cls, name, None)), ("F", vars(F).get(name))):
            if callable(called) and _library(called) not in libraries:
                return f"{home}.{name}, which it calls, was replaced by {_library(called)}"
    if getattr(module, "qconfig", None) is not None:
        return "it is prepared for quantisation, which knows torch's classes only"
    return None


def _library(thing: Any) -> str:
    """The library that a class or a function was written in, also where functools.wraps says another one."""
    written_in = getattr(thing, "__globals__", {}).get("__name__")
    return (written_in or getattr(thing, "__module__", None) or "an unknown module").split(".")[0]

"""Decides which layers `replace` changes: those that the caller chooses and that no tool has patched."""

import difflib
import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch

from normreg.models.registry import COUNTERPARTS, OURS, counterpart, original, path_of
from normreg.models.tables import ROOT, class_name
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


def _check(argument: str, selector: Any, layers: Sequence[Named], names: Collection[str]) -> None:
    if not isinstance(selector, str | type) and not callable(selector):
        raise TypeError(
            f"expected {argument} to be a pattern of names, a class, a function (name, module) -> bool, or a "
            f"list of these, got a {type(selector).__name__}: {selector!r}"
        )
    if callable(selector) and not isinstance(selector, type):
        return  # may say no to everything
    if any(_chooses(selector, name, module) for name, module in layers):
        return
    if not isinstance(selector, str):
        raise ValueError(
            f"expected {argument} to name a class of some layer that replace knows, and there is none of "
            f"{path_of(selector)} among the {len(layers)} of this model"
        )
    inside = selector in names and any(name.startswith(f"{selector}.") for name, _ in layers)
    close = difflib.get_close_matches(selector, [name for name, _ in layers], n=3, cutoff=0.0)
    hint = f"{selector}.*" if inside else ", ".join(close) or "none"
    raise ValueError(
        f"expected {argument} to match the name of some layer that replace knows, and {selector!r} matches "
        f"none of the {len(layers)} of this model; " + ("try " if inside else "nearest: ") + hint
    )


def select(argument: str, given: Selection, layers: Sequence[Named], names: Collection[str]) -> set[str]:
    """The names among `layers`, (name, module) pairs, that `given` selects.

    argument: the name of the caller's argument, for errors.
    given: a pattern of names as `fnmatch` has them, a class, a function (name, module) -> bool, or a list of
        these, of which one has to agree.
    names: those of all modules.

    Raises TypeError for anything else, ValueError for a pattern or a class that selects nothing.
    """
    for selector in _as_tuple(given):
        _check(argument, selector, layers, names)
    return {name for name, module in layers if chooses(given, name, module)}


def why_not_chosen(
    model: torch.nn.Module, include: Selection | None, exclude: Selection | None
) -> dict[str, str]:
    """{name: reason} of the layers that the caller leaves alone."""
    modules = [(name or ROOT, module) for name, module in model.named_modules()]
    layers = [(name, m) for name, m in modules if counterpart(type(m)) or original(type(m))]
    names = {name for name, _ in modules}
    reasons: dict[str, str] = {}
    if include is not None:
        included = select("include", include, layers, names)
        reasons |= {name: "not included" for name, _ in layers if name not in included}
    if exclude is not None:
        reasons |= dict.fromkeys(select("exclude", exclude, layers, names), "excluded")
    return reasons


def replaceable(module: torch.nn.Module) -> bool:
    """Whether `replace` changes this module: of an exact type, and computing what its class is known for."""
    return counterpart(type(module)) is not None and _why_changed_by_others(module) is None


def why_not_replaced(module: torch.nn.Module) -> str | None:
    """The reason why a module that looks like a layer is left alone; None for all others."""
    cls = thawed(type(module))
    if counterpart(cls):
        return _why_changed_by_others(module)
    if cls in OURS or original(cls):
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
    if _library(cls.forward) not in map(_library, cls.__mro__):
        return f"{cls.__name__}.forward was replaced by {_library(cls.forward)}"
    if getattr(module, "qconfig", None) is not None:
        return "it is prepared for quantisation, which knows torch's classes only"
    return None


def _library(thing: Any) -> str:
    return (getattr(thing, "__module__", None) or "an unknown module").split(".")[0]

"""Changes of the class of a model's modules: which there are, and making all of them or none."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from normreg.models.checks import check_is_module
from normreg.models.report import Change, Report, Skip
from normreg.models.selection import OVERRIDDEN
from normreg.models.tables import ROOT, class_name


class ClassChange(NamedTuple):
    """A module and the class that it becomes."""

    name: str
    module: torch.nn.Module
    becomes: type


def find_changes(
    model: torch.nn.Module,
    class_for: Callable[[type], type | None],
    why_left: Callable[[str, torch.nn.Module], str | None],
) -> tuple[list[ClassChange], list[Skip]]:
    """The changes to the class that `class_for` has for a module's class, and what is left alone.

    why_left: called with a module's name and the module, returns the reason why it is left alone, or None.
    """
    check_is_module(model)
    changes, skipped = [], []
    for name, module in model.named_modules():
        name, cls = name or ROOT, type(module)
        becomes = class_for(cls)
        if becomes and "forward" in vars(module):
            skipped.append(Skip(name, class_name(cls), OVERRIDDEN))
        elif reason := why_left(name, module):
            skipped.append(Skip(name, class_name(cls), reason))
        elif becomes:
            changes.append(ClassChange(name, module, becomes))
    return changes, skipped


def make(changes: Iterable[ClassChange]) -> None:
    """Changes all classes or, on an error, none."""
    done = []
    try:
        for change in changes:
            done.append((change.module, type(change.module)))
            change.module.__class__ = change.becomes
    except BaseException:
        for module, cls in done:
            module.__class__ = cls
        raise


def report_of(
    model: torch.nn.Module, changes: list[ClassChange], skipped: list[Skip], **fields: Any
) -> Report:
    """The report of changes that are not made yet; `fields` are further ones of `Report`."""
    changed = (Change(name, class_name(type(module)), class_name(cls)) for name, module, cls in changes)
    inside = (p for change in changes for p in change.module.parameters(recurse=False))
    counts = _elements(inside), _elements(model.parameters())
    return Report(tuple(changed), tuple(skipped), parameters=counts, **fields)


def _elements(parameters: Iterable[torch.Tensor]) -> int:
    """The number of elements of all parameters that exist; a shared one counts once."""
    return sum(p.numel() for p in {*parameters} if not is_lazy(p))

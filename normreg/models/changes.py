"""Changes of the class of a model's modules: which there are, and making all of them or none."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from normreg.models.checks import named_modules
from normreg.models.registry import class_name
from normreg.models.report import Change, Report, Skip
from normreg.models.selection import OVERRIDDEN

REPLACED = "_replaced_by_normreg"  # an attribute of the modules that `restore` is to change back


class ClassChange(NamedTuple):
    """A module, the class that it becomes, and whether that is what `replace` does."""

    name: str
    module: torch.nn.Module
    becomes: type
    replaced: bool


def was_replaced(module: torch.nn.Module) -> bool:
    """Whether `replace` gave the module its class; it may have been made of that class."""
    return REPLACED in vars(module)


def find_changes(
    model: torch.nn.Module,
    class_for: Callable[[torch.nn.Module], type | None],
    why_left: Callable[[str, torch.nn.Module], str | None],
    replaced: bool,
) -> tuple[list[ClassChange], list[Skip]]:
    """The changes to the class that `class_for` has for a module, and what is left alone.

    why_left: called with a module's name and the module, returns the reason why it is left alone, or None.
    replaced: whether `restore` is to undo them.
    """
    changes, skipped = [], []
    for name, module in named_modules(model):
        cls, becomes = type(module), class_for(module)
        if becomes and "forward" in vars(module):
            skipped.append(Skip(name, class_name(cls), OVERRIDDEN))
        elif reason := why_left(name, module):
            skipped.append(Skip(name, class_name(cls), reason))
        elif becomes:
            changes.append(ClassChange(name, module, becomes, replaced))
    return changes, skipped


def undoing(changes: Iterable[ClassChange]) -> list[ClassChange]:
    """The changes back to what the modules are now."""
    return [ClassChange(name, m, type(m), was_replaced(m)) for name, m, *_ in changes]


def make(changes: Iterable[ClassChange]) -> None:
    """Makes all changes or, on an error, none."""
    done: list[ClassChange] = []
    try:
        for change in changes:
            done += undoing([change])
            _make(change)
    except BaseException:
        for change in done:
            _make(change)
        raise


def _make(change: ClassChange) -> None:
    change.module.__class__ = change.becomes
    if change.replaced:
        vars(change.module)[REPLACED] = True
    else:
        vars(change.module).pop(REPLACED, None)


def report_of(
    model: torch.nn.Module, changes: list[ClassChange], skipped: list[Skip], **fields: Any
) -> Report:
    """The report of changes that are not made yet; `fields` are further ones of `Report`."""
    changed = (Change(name, class_name(type(module)), class_name(cls)) for name, module, cls, _ in changes)
    inside = (p for change in changes for p in change.module.parameters(recurse=False))
    counts = _elements(inside), _elements(model.parameters())
    return Report(tuple(changed), tuple(skipped), parameters=counts, **fields)


def _elements(parameters: Iterable[torch.Tensor]) -> int:
    """The number of elements of all parameters that exist; a shared one counts once."""
    return sum(p.numel() for p in {*parameters} if not is_lazy(p))

"""`restore` undoes `replace`; `restored` shows a model with the classes of before for a while."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import TypeVar

import torch

from normreg.models import changes
from normreg.models.changes import was_replaced
from normreg.models.checks import named_modules
from normreg.models.fusion import calls
from normreg.models.naming import ROOT, counted, summary_of
from normreg.models.registry import ORIGINALS, OURS, Foreign, class_name, original
from normreg.models.report import Report
from normreg.models.selection import Selection, why_not_chosen
from normreg.nn.frozen import thawed

Model = TypeVar("Model", bound=torch.nn.Module)


def restore(
    model: torch.nn.Module,
    include: Selection | None = None,
    exclude: Selection | None = None,
    verbose: bool = False,
) -> Report:
    """Undoes `replace`: every layer that it changed gets its class from before, in place.

    A layer that was made as one of normreg's stays one. Without `include` and `exclude` fusions are undone
    as well; with them, calls that are fused stay fused, by the layers' new classes.

    Args:
        model: a torch.nn.Module.
        include, exclude: which of the layers, as `replace` takes them.
        verbose: whether the report prints a line for each layer.

    Returns a `Report`. Raises TypeError where `model` is not a module, and what `replace` raises for a
    selection; then nothing has changed.

    Equivalent::

        for module in model.modules():
            if type(module) is normreg.LayerNorm:           # and was torch's before replace
                module.__class__ = torch.nn.LayerNorm       # and so on
    """
    layers = [(name, m) for name, m in named_modules(model) if was_replaced(m) and original(type(m))]
    unwanted = why_not_chosen(layers, include, exclude, "that replace has changed")

    def why_left(name: str, module: torch.nn.Module) -> str | None:
        return unwanted.get(name) or _why_left(module)

    def before(module: torch.nn.Module) -> type | None:
        return original(type(module)) if was_replaced(module) else None

    found, skipped = changes.find_changes(model, before, why_left, replaced=False)
    fused = []
    if include is None and exclude is None:
        fused = [name or ROOT for name, _ in calls.fused_modules(model)]
    notes = (f"calls are not fused any more: {', '.join(fused)}",) if fused else ()
    report = changes.report_of(model, found, skipped, notes=notes, verbose=verbose)
    changes.make(found)
    if fused:
        calls.unfuse(model)
    return report


def _why_left(module: torch.nn.Module) -> str | None:
    cls = thawed(type(module))
    derived_since = isinstance(module, (Foreign, *ORIGINALS)) and cls not in OURS
    if was_replaced(module) and derived_since and original(cls) is None:
        return "its class was derived from normreg's since, as by fully_shard: undo that first"
    return None


@contextlib.contextmanager
def restored(model: Model) -> Iterator[Model]:
    """Within it, layers have torch.nn's classes, and those of other libraries their own; nothing is fused.

    For tools that look at exact classes, and overlook or refuse others: opacus' ModuleValidator, folding of
    BatchNorm into convolutions, `fuse_modules` and FX quantisation of torch.ao, torch.jit.script. Layers that
    were made as normreg's are shown as torch.nn's, too; a frozen BatchNorm stays frozen, of a class derived
    from torch.nn's. Afterwards every layer, also one that has left the model, has its class of before, unless
    the tool has given it another. It can be nested.

    Warns of layers that torch.nn has no class for, such as `BatchNormAct2d`: they stay what they are. Raises
    TypeError where `model` is not a module.

    Example::

        with normreg.restored(model):
            errors = opacus.validators.ModuleValidator.validate(model)
    """
    modules = named_modules(model)
    shown, _ = changes.find_changes(model, lambda module: original(type(module)), lambda *_: None, False)
    classes = [(name, thawed(type(module))) for name, module in modules]
    kept = [(name, cls) for name, cls in classes if cls in OURS and original(cls) is None]
    if kept:
        warnings.warn(
            f"expected layers that torch.nn has a class for, got {counted(kept)} that stay normreg's: "
            f"{summary_of(name for name, _ in kept)} "
            f"({summary_of(sorted({class_name(cls) for _, cls in kept}))}). A tool that looks at exact "
            f"classes overlooks them: see that it need not know them, or call normreg.register_with",
            stacklevel=3,
        )
    fused = [(module, module._compiled_call_impl) for _, module in calls.fused_modules(model)]
    before = changes.undoing(shown)
    changes.make(shown)
    calls.unfuse(model)
    try:
        yield model
    finally:
        as_shown = {id(change.module): change.becomes for change in shown}
        changes.make(change for change in before if type(change.module) is as_shown[id(change.module)])
        for module, call in fused:
            calls.put(module, call)

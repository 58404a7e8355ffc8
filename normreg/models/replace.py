"""`replace`: changes the class of a model's layers, and nothing else."""

from collections.abc import Callable
from typing import Any

from torch import nn

from normreg.models import changes
from normreg.models.changes import ClassChange
from normreg.models.checks import check_is_module
from normreg.models.fusion import patterns, tracing
from normreg.models.registry import Derived, counterpart, original
from normreg.models.report import Fusion, Report, Skip
from normreg.models.selection import Selection, chooses, why_not_chosen, why_not_replaced
from normreg.models.tables import ROOT, class_name, counted


def replace(
    model: nn.Module,
    include: Selection | None = None,
    exclude: Selection | None = None,
    fuse: bool = False,
    dry_run: bool = False,
) -> Report:
    """Makes every normalisation and dropout layer that normreg knows a normreg one, in place.

    Only `module.__class__` changes, so parameters, buffers, hooks, optimizer references, tied modules,
    `training` flags and the state_dict stay the very objects they were. Only exact types are changed: a
    subclass is left alone and named in the report. Calling it again changes nothing.

    Args:
        model: a torch.nn.Module; itself one of these layers, or with them anywhere inside.
        include: the layers to change, None for all: a pattern of their names as in `fnmatch`
            ("encoder.*.norm?"), a class, a function (name, module) -> bool, or a list of these.
        exclude: the layers to leave alone, given in the same way; it has the last word.
        fuse: also compute in one call what stands beside a layer: an activation behind a BatchNorm or behind
            its sum with a residual; dropout and a sum, or the sum, in front of a LayerNorm or RMSNorm;
            dropout behind an activation or in front of a sum. For that the forwards around them are traced by
            torch.fx, without computing anything, and their modules get a class derived from their own that
            runs what was found. The layers inside are then not called any more. Calls with arguments that
            the trace knows nothing of, and all calls after a hook was put on such a layer, or a layer or a
            number of the module was exchanged, run the forward from before. Patterns of functions, without a
            layer, are fused where there is no `include` and `exclude` does not choose the module around.
        dry_run: change nothing, and report what would be changed.

    Returns a `Report` that prints as a table. Raises TypeError where `model` is not a module or a selection
    none of the above, ValueError for a pattern or a class that matches no layer; then nothing has changed.

    Equivalent::

        for module in model.modules():
            if type(module) is torch.nn.LayerNorm:
                module.__class__ = normreg.LayerNorm        # and so on
    """
    check_is_module(model)
    unwanted = why_not_chosen(model, include, exclude)

    def why_left(name: str, module: nn.Module) -> str | None:
        already = original(type(module)) is not None
        return None if already else unwanted.get(name) or why_not_replaced(module)

    def functions_too(name: str, module: nn.Module) -> bool:
        return include is None and not (exclude and chooses(exclude, name, module))

    found, skipped = changes.find_changes(model, counterpart, why_left)
    rewritten, fusions = _find_fusions(model, found, functions_too) if fuse else ([], {})
    found += rewritten
    report = changes.report_of(model, found, skipped, dry_run=dry_run, notes=_notes(model, found), **fusions)
    if not dry_run:
        changes.make(found)
    return report


def _find_fusions(
    model: nn.Module, found: list[ClassChange], functions_too: Callable[[str, nn.Module], bool]
) -> tuple[list[ClassChange], dict[str, Any]]:
    """Changes of the modules whose forward is rewritten, and the report's fields on fusions.

    functions_too: called with a module's name and the module, says whether patterns of functions are fused.
    """
    becomes = {module: cls for _, module, cls in found}

    def class_of(module: nn.Module) -> type:
        return becomes.get(module, type(module))

    rewritten: list[ClassChange] = []
    fused: list[Fusion] = []
    refused: list[Skip] = []
    for name, module in model.named_modules():
        if module in becomes or isinstance(module, Derived):
            continue
        if not patterns.is_block(module):
            continue
        name = name or ROOT
        try:
            cls, done, refusals = patterns.fuse(module, class_of, functions_too(name, module))
        except tracing.Untraceable as reason:
            if any(patterns.is_anchor(class_of(child)) for child in patterns.inside(module)):
                refused.append(Skip(name, class_name(type(module)), str(reason)))
            continue
        if cls is not None:
            rewritten.append(ClassChange(name, module, cls))
        fused += [Fusion(name, what) for what in done]
        refused += [Skip(name, what, reason) for what, reason in refusals]
    return rewritten, dict(fused=tuple(fused), not_fused=tuple(refused))


def _notes(model: nn.Module, found: list[ClassChange]) -> tuple[str, ...]:
    """What a caller would not expect of some modules around those that change."""
    changed = {change.module for change in found}
    bypassing = [
        module
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoderLayer)
        and type(module).forward is nn.TransformerEncoderLayer.forward
        and not changed.isdisjoint(module.children())
    ]
    if not bypassing:
        return ()
    layers = counted(bypassing, "torch.nn.TransformerEncoderLayer")
    return (
        f"{layers}: in evaluation and without gradients, torch's fast path computes what is inside, changed "
        f"layers too; torch.backends.mha.set_fastpath_enabled(False) stops that",
    )

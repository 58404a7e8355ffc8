"""`replace`: changes the class of a model's layers and, with `fuse`, how it is called."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from normreg.kernels import cpu
from normreg.models import changes
from normreg.models.changes import ClassChange
from normreg.models.checks import named_modules
from normreg.models.fusion import calls
from normreg.models.fusion.backend import Backend, backend_of, checked
from normreg.models.naming import ROOT, counted
from normreg.models.registry import class_name, counterpart
from normreg.models.report import Report, Skip
from normreg.models.selection import Selection, chooses, is_known, is_ours, why_not_chosen, why_not_replaced
from normreg.models.unchanged import check_runs

CLASSES = (
    "tools that look at exact classes, as for differential privacy, conv-BN folding and quantisation, "
    "overlook these layers: call them in `with normreg.restored(model):`"
)
LATER = "fused when the model is called: give example_inputs, or ask normreg.explain, to see what is fused"


def replace(
    model: nn.Module,
    include: Selection | None = None,
    exclude: Selection | None = None,
    fuse: bool | Sequence[str] = False,
    dry_run: bool = False,
    example_inputs: Any = None,
    verbose: bool = False,
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
        fuse: also compute in one operator what stands beside a layer, as `model.compile` with the backend
            `normreg.fused` does: the model's calls are traced by torch.compile, fused, and run as eager mode
            runs. Or a list of the patterns to fuse, by the names that `normreg.fused` takes. Patterns of
            functions, without a layer, are fused where there is no `include` and `exclude` does not choose
            the module around. A copy of the model, also by pickling, is not fused, as with `model.compile`.
        dry_run: change nothing, and report what would be changed.
        example_inputs: what the model is called with: a tensor, a sequence of arguments, or a mapping of
            those given by name. With `fuse`, it is run once, and the report says what is fused; nothing of
            the run is left behind. Without, `normreg.explain` says it after a call.
        verbose: whether the report prints a line for each layer, instead of one for those that are alike.

    Returns a `Report` that prints as a table. Raises TypeError where `model` is not a module or a selection
    none of the above, ValueError for a pattern or a class that matches no layer or an unknown name in
    `fuse`, and what a call with `example_inputs` raises; then nothing has changed.

    Equivalent::

        for module in model.modules():
            if type(module) is torch.nn.LayerNorm:
                module.__class__ = normreg.LayerNorm        # and so on
        model.compile(backend=normreg.fused())              # with fuse
    """
    layers = [(name, module) for name, module in named_modules(model) if is_known(module)]
    cpu.warn_of_late_variables()
    patterns = checked(None if isinstance(fuse, bool) else fuse, "fuse=True for all")
    unwanted = why_not_chosen(layers, include, exclude)

    def why_left(name: str, module: nn.Module) -> str | None:
        return None if is_ours(module) else unwanted.get(name) or why_not_replaced(module)

    found, skipped = changes.find_changes(model, lambda m: counterpart(type(m)), why_left, replaced=True)
    report = changes.report_of(
        *(model, found, skipped),
        dry_run=dry_run,
        notes=(*_fast_paths(model, found), *[CLASSES] * bool(found)),
        already=sum(map(is_ours, model.modules())),
        verbose=verbose,
    )
    if dry_run and not (fuse and example_inputs is not None):
        return _with_note(report) if fuse else report
    before = changes.undoing(found)
    whole, done = calls.within(model), False
    call = whole._compiled_call_impl
    try:
        changes.make(found)
        if fuse:
            chosen = (m for name, m in model.named_modules() if exclude and chooses(exclude, name, m))
            left = frozenset(map(id, chosen))
            backend = backend_of(None, patterns, include is None, left)
            report = _with_fusions(report, model, backend, example_inputs)
        done = not dry_run
    finally:
        if not done:
            changes.make(before)
            calls.put(whole, call)
    return report


def _with_fusions(report: Report, model: nn.Module, backend: Backend, example_inputs: Any) -> Report:
    """Fuses the model's calls, and adds to the report what there is to say of it."""
    if reason := calls.why_not_fused(model):
        return dataclasses.replace(report, not_fused=(Skip(ROOT, class_name(type(model)), reason),))
    whole = calls.within(model)
    calls.put(whole, calls.FusedCall(whole, backend))
    if example_inputs is None:
        return _with_note(report)
    inputs, options = _arguments(example_inputs)
    check_runs(model, inputs, options, "replace(model, fuse=True, example_inputs=(x,))")
    fused, not_fused = calls.patterns_of(model, inputs, options)
    notes = report.notes if fused else ("nothing is fused in a call with these inputs", *report.notes)
    return dataclasses.replace(report, fused=fused, not_fused=not_fused, notes=notes)


def _with_note(report: Report) -> Report:
    return dataclasses.replace(report, notes=(LATER, *report.notes))


def _arguments(example_inputs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), example_inputs
    return example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,), {}


def _fast_paths(model: nn.Module, found: list[ClassChange]) -> tuple[str, ...]:
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

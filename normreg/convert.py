"""`replace` and `restore`: change the class of a model's layers, and of nothing else."""

from dataclasses import dataclass

import torch

from normreg import foreign, nn, selection
from normreg.fusion import blocks, patterns, tracing

COUNTERPARTS = {
    torch.nn.LayerNorm: nn.LayerNorm,
    torch.nn.RMSNorm: nn.RMSNorm,
    torch.nn.GroupNorm: nn.GroupNorm,
    torch.nn.InstanceNorm1d: nn.InstanceNorm1d,
    torch.nn.InstanceNorm2d: nn.InstanceNorm2d,
    torch.nn.InstanceNorm3d: nn.InstanceNorm3d,
    torch.nn.BatchNorm1d: nn.BatchNorm1d,
    torch.nn.BatchNorm2d: nn.BatchNorm2d,
    torch.nn.BatchNorm3d: nn.BatchNorm3d,
    torch.nn.SyncBatchNorm: nn.SyncBatchNorm,
    torch.nn.Dropout: nn.Dropout,
    torch.nn.Dropout1d: nn.Dropout1d,
    torch.nn.Dropout2d: nn.Dropout2d,
    torch.nn.Dropout3d: nn.Dropout3d,
    torch.nn.AlphaDropout: nn.AlphaDropout,
    torch.nn.FeatureAlphaDropout: nn.FeatureAlphaDropout,
}
# Layers of the same kinds that are named in the report where they are left alone.
FAMILIES = (
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.modules.dropout._DropoutNd,
)
OURS = {getattr(nn, name) for name in nn.__all__}
ROOT = "(the model itself)"
ORIGINALS = {ours: original for original, ours in COUNTERPARTS.items()}


@dataclass(frozen=True)
class Change:
    name: str
    was: str
    now: str


@dataclass(frozen=True)
class Skip:
    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Fusion:
    name: str  # of the module whose forward applies them
    what: str  # "bn1 -> relu"


@dataclass(frozen=True)
class Report:
    """What `replace` or `restore` did, or would do: printed, a table each of what there is.

    `changed` and `skipped` are layers; `fused` and `not_fused`, the latter with the reason, are patterns.
    """

    changed: tuple[Change, ...]
    skipped: tuple[Skip, ...]
    dry_run: bool = False  # nothing was changed
    fused: tuple[Fusion, ...] = ()
    not_fused: tuple[Skip, ...] = ()

    def __str__(self):
        would_be = "would be " * self.dry_run
        rows = [(change.name, change.was, change.now) for change in self.changed]
        lines = [f"{counted(rows)} {would_be}changed"]
        if rows:
            lines += table([("name", "was", "would be" if self.dry_run else "is"), *rows])
        for rows, what, header in (
            ([(f.name, f.what) for f in self.fused], f"{would_be}fused", ("in", "what")),
            ([(s.name, s.kind, s.reason) for s in self.not_fused], "not fused", ("in", "what", "why")),
        ):
            if rows:
                lines += ["", f"{counted(rows, 'pattern')} {what}", *table([header, *rows])]
        if self.skipped:
            lines += ["", f"{counted(self.skipped)} left alone"]
            lines += table([("name", "class", "why"), *((s.name, s.kind, s.reason) for s in self.skipped)])
        return "\n".join(lines)


def counted(rows, what="layer"):
    return f"{len(rows)} {what}{'' if len(rows) == 1 else 's'}"


def table(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows = [rows[0], tuple("-" * width for width in widths), *rows[1:]]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def class_name(cls):
    library = "torch.nn" if cls.__module__.startswith("torch.nn.") else cls.__module__.split(".")[0]
    return f"{library}.{cls.__name__}"


def check_is_module(model):
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"expected a torch.nn.Module, got {type(model).__name__}: pass the model itself, not its "
            f"output, parameters or state_dict"
        )


def replaceable(module):
    """Whether `replace` changes this module: an exact type whose forward is not the instance's own."""
    return counterpart(type(module)) is not None and "forward" not in vars(module)


def counterpart(cls):
    """normreg's class for layers of exactly this class, or None."""
    return COUNTERPARTS.get(cls) or foreign.counterpart(cls)


def original(cls):
    """The class of which `cls` is normreg's, or None."""
    derived = issubclass(cls, foreign.Derived | blocks.Fused)
    return ORIGINALS.get(cls) or (vars(cls).get("original") if derived else None)


def _plan_changes(model, class_for, why_left):
    """Every module with the class that `class_for` has for it, and those left alone for a reason."""
    check_is_module(model)
    changes, skipped = [], []
    for name, module in model.named_modules():
        name, cls = name or ROOT, type(module)
        becomes = class_for(cls)
        if "forward" in vars(module) and becomes:
            skipped.append(Skip(name, class_name(cls), "its forward is overridden on the instance"))
        elif reason := why_left(name, module):
            skipped.append(Skip(name, class_name(cls), reason))
        elif becomes:
            changes.append((name, module, becomes))
    return changes, skipped


def _carry_out(changes):
    """Changes all classes or, on an error, none."""
    done = []
    try:
        for _, module, cls in changes:
            done.append((module, type(module)))
            module.__class__ = cls
    except BaseException:
        for module, cls in done:
            module.__class__ = cls
        raise


def _report(changes, skipped, **options):
    changed = (Change(name, class_name(type(module)), class_name(cls)) for name, module, cls in changes)
    return Report(tuple(changed), tuple(skipped), **options)


def _plan_fusions(model, changes, functions_too):
    """Changes of the modules whose forward is rewritten, what is fused there, and what is not, and why.

    functions_too: of a module's name and the module, whether patterns without a layer are fused.
    """
    becomes = {module: cls for _, module, cls in changes}

    def class_of(module):
        return becomes.get(module, type(module))

    rewritten, fused, refused = [], [], []
    for name, module in model.named_modules():
        if module in becomes or isinstance(module, foreign.Derived | blocks.Fused):
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
            rewritten.append((name, module, cls))
        fused += [Fusion(name, what) for what in done]
        refused += [Skip(name, what, reason) for what, reason in refusals]
    return rewritten, dict(fused=tuple(fused), not_fused=tuple(refused))


def _why_not_replaced(module):
    if type(module) in OURS or original(type(module)) or counterpart(type(module)):
        return None
    for known in COUNTERPARTS:
        if isinstance(module, known):
            return f"a subclass of {class_name(known)} may compute something else"
    if isinstance(module, FAMILIES):
        return "normreg has no counterpart"
    return None


def _why_not_chosen(model, include, exclude):
    """{name: reason} of the layers that the caller leaves alone."""
    check_is_module(model)
    modules = [(name or ROOT, module) for name, module in model.named_modules()]
    layers = [(name, m) for name, m in modules if counterpart(type(m)) or original(type(m))]
    names, reasons = {name for name, _ in modules}, {}
    if include is not None:
        included = selection.select("include", include, layers, names)
        reasons |= {name: "not included" for name, _ in layers if name not in included}
    if exclude is not None:
        reasons |= dict.fromkeys(selection.select("exclude", exclude, layers, names), "excluded")
    return reasons


def replace(model, include=None, exclude=None, fuse=False, dry_run=False):
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
    unwanted = _why_not_chosen(model, include, exclude)

    def why_left(name, module):
        already = original(type(module)) is not None
        return None if already else unwanted.get(name) or _why_not_replaced(module)

    def functions_too(name, module):
        return include is None and not (exclude and selection.chooses(exclude, name, module))

    changes, skipped = _plan_changes(model, counterpart, why_left)
    rewritten, fusions = _plan_fusions(model, changes, functions_too) if fuse else ([], {})
    changes += rewritten
    report = _report(changes, skipped, dry_run=dry_run, **fusions)
    if not dry_run:
        _carry_out(changes)
    return report


def _why_not_restored(name, module):
    cls = type(module)
    derived_since = isinstance(module, (foreign.Derived, blocks.Fused, *ORIGINALS)) and cls not in OURS
    if derived_since and original(cls) is None:
        return "its class was derived from normreg's since, as by fully_shard: undo that first"
    return None


def restore(model):
    """Undoes `replace`, fusions included: every layer of `model` gets the class from before, in place.

    Returns a `Report`. Raises TypeError where `model` is not a module.
    """
    changes, skipped = _plan_changes(model, original, _why_not_restored)
    report = _report(changes, skipped)
    _carry_out(changes)
    return report

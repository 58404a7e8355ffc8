"""`replace` and `restore`: change the class of a model's layers, and of nothing else."""

import re

import torch
from torch.nn.parameter import is_lazy

from normreg import nn
from normreg.models import registry, selection
from normreg.models.fusion import blocks, patterns, tracing
from normreg.models.report import ROOT, Change, Fusion, Report, Skip, class_name, counted

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
OVERRIDDEN = "its forward is overridden on the instance"
# of layers that are named, too, though they are of no family
LAYER_NAMES = re.compile("norm|drop(out|path|block)|stochasticdepth", re.IGNORECASE)
OURS = {getattr(nn, name) for name in nn.__all__}
ORIGINALS = {ours: original for original, ours in COUNTERPARTS.items()}


def check_is_module(model):
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"expected a torch.nn.Module, got {type(model).__name__}: pass the model itself, not its "
            f"output, parameters or state_dict"
        )


def replaceable(module):
    """Whether `replace` changes this module: an exact type that computes what its class is known for."""
    return counterpart(type(module)) is not None and _why_changed_by_others(module) is None


def _why_changed_by_others(module):
    """What a tool that patches models did to this layer, or None."""
    cls = type(module)
    if "forward" in vars(module):
        return OVERRIDDEN
    if _library(cls.forward) not in map(_library, cls.__mro__):
        return f"{cls.__name__}.forward was replaced by {_library(cls.forward)}"
    if getattr(module, "qconfig", None) is not None:
        return "it is prepared for quantisation, which knows torch's classes only"
    return None


def _library(thing):
    return (getattr(thing, "__module__", None) or "an unknown module").split(".")[0]


def counterpart(cls):
    """normreg's class for layers of exactly this class, or None."""
    return COUNTERPARTS.get(cls) or registry.counterpart(cls)


def original(cls):
    """The class of which `cls` is normreg's, or None."""
    derived = issubclass(cls, registry.Derived | blocks.Fused)
    return ORIGINALS.get(cls) or (vars(cls).get("original") if derived else None)


def _plan_changes(model, class_for, why_left):
    """Every module with the class that `class_for` has for it, and those left alone for a reason."""
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


def _report(model, changes, skipped, **options):
    changed = (Change(name, class_name(type(module)), class_name(cls)) for name, module, cls in changes)
    inside = (p for _, module, _ in changes for p in module.parameters(recurse=False))
    counts = _elements(inside), _elements(model.parameters())
    return Report(tuple(changed), tuple(skipped), parameters=counts, **options)


def _elements(parameters):
    """Of all that exist, shared ones counted once."""
    return sum(p.numel() for p in {*parameters} if not is_lazy(p))


def _notes(model, changes):
    """What a caller would not expect of some modules around those that change."""
    changed = {module for _, module, _ in changes}
    bypassing = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.TransformerEncoderLayer)
        and type(module).forward is torch.nn.TransformerEncoderLayer.forward
        and not changed.isdisjoint(module.children())
    ]
    if not bypassing:
        return ()
    layers = counted(bypassing, "torch.nn.TransformerEncoderLayer")
    return (
        f"{layers}: in evaluation and without gradients, torch's fast path computes what is inside, changed "
        f"layers too; torch.backends.mha.set_fastpath_enabled(False) stops that",
    )


def _plan_fusions(model, changes, functions_too):
    """Changes of the modules whose forward is rewritten, what is fused there, and what is not, and why.

    functions_too: of a module's name and the module, whether patterns without a layer are fused.
    """
    becomes = {module: cls for _, module, cls in changes}

    def class_of(module):
        return becomes.get(module, type(module))

    rewritten, fused, refused = [], [], []
    for name, module in model.named_modules():
        if module in becomes or isinstance(module, registry.Derived | blocks.Fused):
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
    if counterpart(type(module)):
        return _why_changed_by_others(module)
    if type(module) in OURS or original(type(module)):
        return None
    for known in COUNTERPARTS:
        if isinstance(module, known):
            return f"a subclass of {class_name(known)} may compute something else"
    if isinstance(module, FAMILIES):
        return "normreg has no counterpart"
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit: replace before" if LAYER_NAMES.search(module.original_name) else None
    home = type(module).__module__
    if module._modules or home.startswith("torch.nn.utils") or not LAYER_NAMES.search(type(module).__name__):
        return None
    theirs = home.startswith("torch.")
    return "normreg has no counterpart" if theirs else "an unknown class: see normreg.register_layer"


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
    report = _report(model, changes, skipped, dry_run=dry_run, notes=_notes(model, changes), **fusions)
    if not dry_run:
        _carry_out(changes)
    return report


def _why_not_restored(name, module):
    cls = type(module)
    derived_since = isinstance(module, (registry.Derived, blocks.Fused, *ORIGINALS)) and cls not in OURS
    if derived_since and original(cls) is None:
        return "its class was derived from normreg's since, as by fully_shard: undo that first"
    return None


def restore(model):
    """Undoes `replace`, fusions included: every layer of `model` gets the class from before, in place.

    Returns a `Report`. Raises TypeError where `model` is not a module.
    """
    changes, skipped = _plan_changes(model, original, _why_not_restored)
    report = _report(model, changes, skipped)
    _carry_out(changes)
    return report

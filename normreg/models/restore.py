"""`restore`: gives a model's layers back the classes that they had before `replace`."""

import torch

from normreg.models import changes
from normreg.models.fusion import calls
from normreg.models.registry import ORIGINALS, OURS, Foreign, original
from normreg.models.report import Report
from normreg.models.tables import ROOT
from normreg.nn.frozen import thawed


def restore(model: torch.nn.Module) -> Report:
    """Undoes `replace`, fusions included: every layer of `model` gets its class from before, in place.

    Returns a `Report`. Raises TypeError where `model` is not a module.
    """
    found, skipped = changes.find_changes(model, original, _why_left)
    fused = [name or ROOT for name, _ in calls.fused_modules(model)]
    notes = (f"calls are not fused any more: {', '.join(fused)}",) if fused else ()
    report = changes.report_of(model, found, skipped, notes=notes)
    changes.make(found)
    calls.unfuse(model)
    return report


def _why_left(name: str, module: torch.nn.Module) -> str | None:
    cls = thawed(type(module))
    derived_since = isinstance(module, (Foreign, *ORIGINALS)) and cls not in OURS
    if derived_since and original(cls) is None:
        return "its class was derived from normreg's since, as by fully_shard: undo that first"
    return None

"""Tells tools that look layers up by their exact class what normreg's layers are."""

import importlib
from collections.abc import Callable, MutableMapping
from typing import Any

from torch import nn

from normreg.models.registry import COUNTERPARTS, ORIGINALS, OURS
from normreg.models.restore import restored

Rules = MutableMapping[Any, Any]  # by class, or by a tuple of classes


def register_with(tool: str) -> int:
    """Gives a tool its rules for torch.nn's layers for the normreg layers of the same kind as well.

    Args:
        tool: "opacus": its validators then refuse normreg's BatchNorm, with or without an activation, whose
            training has no privacy guarantee, its fixers exchange it, and its samplers of gradients know
            normreg's norms. "torch.ao": `fuse_modules` and `fuse_modules_qat` then fold normreg's BatchNorm
            into a convolution or linear layer in front of it.

    The rules are the tool's own and hold in this process. Other tools, layers of timm or transformers that
    `replace` has changed, and FX quantisation need `normreg.restored`.

    Returns how many rules are new: none at the second call. Raises ValueError for another tool,
    ModuleNotFoundError where it is not installed, RuntimeError where its release keeps no such rules.

    Equivalent, for each layer::

        opacus.validators.register_module_validator(normreg.BatchNorm2d)(its_validator_of_batch_norm)
    """
    if tool not in TOOLS:
        raise ValueError(
            f"expected {' or '.join(map(repr, TOOLS))}, got {tool!r}: call any other tool in `with "
            f"normreg.restored(model):`, where the model has torch.nn's layers"
        )
    try:
        extend = TOOLS[tool]
        return extend()
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"expected {tool} to be installed, and {missing.name} is not: pip install {tool}",
            name=missing.name,
        ) from None
    except AttributeError as missing:
        raise RuntimeError(
            f"expected a release of {tool} that keeps its rules where it used to, and this one does not "
            f"({missing}): call it in `with normreg.restored(model):`"
        ) from None


def _opacus() -> int:
    validator = importlib.import_module("opacus.validators").ModuleValidator
    samplers = importlib.import_module("opacus.grad_sample").GradSampleModule.GRAD_SAMPLERS
    refused = {ours: _torchs(ours) for ours in OURS}
    # a fixer, and a sampler, would forget what a layer does beside the norm
    tables = (validator.VALIDATORS, refused), (validator.FIXERS, ORIGINALS), (samplers, ORIGINALS)
    return sum(
        _extended(rules, {ours: rules[torchs] for ours, torchs in known.items() if torchs in rules})
        for rules, known in tables
    )


def _torchs(ours: type) -> type | None:
    """The layer of torch.nn that one of normreg's is, or adds something to."""
    kinds = (ORIGINALS.get(base, base) for base in ours.__mro__)
    return next((kind for kind in kinds if kind in COUNTERPARTS), None)


def _torch_ao() -> int:
    mappings = importlib.import_module("torch.ao.quantization.fuser_method_mappings")
    rules = mappings._DEFAULT_OP_LIST_TO_FUSER_METHOD
    batch_norms = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
    ours = {torchs: COUNTERPARTS[torchs] for torchs in batch_norms}
    # not those that begin with BatchNorm: it would stay, in a module that takes torch's alone
    folding = {layers: rule for layers, rule in rules.items() if not batch_norms.isdisjoint(layers[1:])}
    return _extended(
        rules,
        {tuple(ours.get(cls, cls) for cls in layers): _restoring(rule) for layers, rule in folding.items()},
    )


def _restoring(rule: Callable[..., Any]) -> Callable[..., Any]:
    """The rule on layers that have torch's classes, which it compares, meanwhile."""

    def fuse(is_qat: bool, *layers: nn.Module) -> Any:
        with restored(nn.ModuleList(layers)):
            return rule(is_qat, *layers)

    return fuse


def _extended(rules: Rules, more: Rules) -> int:
    """Adds rules for what has none, and returns how many."""
    new = {key: rule for key, rule in more.items() if key not in rules}
    rules.update(new)
    return len(new)


TOOLS: dict[str, Callable[[], int]] = {"opacus": _opacus, "torch.ao": _torch_ao}

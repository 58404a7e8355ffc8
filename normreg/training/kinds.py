"""Which layers are normalisation layers: by torch's class that they derive from, else by their name."""

import re
from typing import NamedTuple

import torch

from normreg.models.registry import class_name

NORMS = (
    torch.nn.modules.batchnorm._NormBase,  # every BatchNorm, InstanceNorm and SyncBatchNorm
    torch.nn.LayerNorm,
    torch.nn.RMSNorm,
    torch.nn.GroupNorm,
)
# torch's other classes that own parameters, or the bases of these
OTHERS = (
    torch.nn.Linear,
    torch.nn.Bilinear,
    torch.nn.modules.conv._ConvNd,
    torch.nn.Embedding,
    torch.nn.EmbeddingBag,
    torch.nn.RNNBase,
    torch.nn.RNNCellBase,
    torch.nn.MultiheadAttention,
    torch.nn.PReLU,
)
# LayerNorm2d, RmsNorm, BatchNormAct2d, GroupNorm1, LlamaRMSNorm, LayerNormFp32, but no NormalizedLinear
NORM_NAME = re.compile(r"Norm(Act|Exp|Tlu|Fp32|\dd?|[A-Z]\d[a-z]?)*$")
UNKNOWN = "is no norm by class or name"


class Kind(NamedTuple):
    """Whether a module is a normalisation layer, and the rule that says so."""

    is_norm: bool
    rule: str


def kind_of(module: torch.nn.Module) -> Kind:
    """What the first of torch's classes with parameters says that the module derives from, else its name."""
    classes = type(module).__mro__
    for cls in classes:
        if cls in NORMS or cls in OTHERS:
            return Kind(cls in NORMS, f"is a {class_name(_named(classes, cls))}")
    for cls in classes:
        if NORM_NAME.search(cls.__name__) and _has_vectors(module):
            return Kind(True, f"is named {cls.__name__}")
    return Kind(False, UNKNOWN)


def _named(classes: tuple[type, ...], base: type) -> type:
    """torch's class that users know, before its base."""
    return next(
        cls for cls in classes if cls.__module__.startswith("torch.nn.modules.") and issubclass(cls, base)
    )


def _has_vectors(module: torch.nn.Module) -> bool:
    """Whether all that the module owns is vectors: of matrices, no normalisation has a weight."""
    owned = [*module.parameters(recurse=False)]
    if torch.nn.utils.parametrize.is_parametrized(module):
        owned += module.parametrizations.parameters()  # type: ignore[union-attr]
    return all(torch.nn.parameter.is_lazy(p) or sum(size > 1 for size in p.shape) <= 1 for p in owned)

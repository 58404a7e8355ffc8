"""Normalisation and dropout layers of torchvision that torch.nn lacks."""

from typing import Any

from torch import Tensor

from normreg import functional
from normreg.models.registry import as_before, register_layer, same_dtype


@register_layer("torchvision.ops.misc.FrozenBatchNorm2d")
def frozen_batch_norm(module: Any, x: Tensor) -> Tensor:
    """Batch normalisation with statistics that are never updated."""
    vectors = (module.running_mean, module.running_var, module.weight, module.bias)
    if not same_dtype(x, *vectors):
        return as_before(module, x)
    return functional.batch_norm(x, *vectors, training=False, eps=getattr(module, "eps", 1e-5))


@register_layer("torchvision.models.convnext.LayerNorm2d")
def layer_norm_2d(module: Any, x: Tensor) -> Tensor:
    """Layer normalisation over the channels."""
    return functional.layer_norm_channels(x, module.weight, module.bias, module.eps)


@register_layer("torchvision.ops.stochastic_depth.StochasticDepth")
def stochastic_depth(module: Any, input: Tensor) -> Tensor:
    """Drop path, where the layer drops whole samples."""
    if module.mode != "row":
        return as_before(module, input)
    return functional.drop_path(input, module.p, module.training)

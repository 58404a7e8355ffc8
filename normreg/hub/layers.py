"""The layers: modules without a state of their own, whose forward `kernels` puts on others.

A class says by a name, with which it is decorated, whose forward its layers get. Behind one name stand
classes that round differently, so a forward asks for the class of its module which function computes it: the
one that `replace` would take or, for a class that normreg does not know, the name's.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from normreg import functional
from normreg.models.naming import path_of
from normreg.models.registry import FORWARDS, Foreign, as_before, same_dtype
from normreg.models.transformers import gemma_rms_norm, llama_rms_norm, qwen3_next_gated_norm

EPSILONS = "variance_epsilon", "eps"


def forward_of(module: nn.Module, by_name: Callable[..., Any]) -> Callable[..., Any]:
    """The function (module, *inputs) that computes a layer.

    It is the class's own forward where that is inherited by a class from a decorated one and changed.
    """
    for cls in type(module).__mro__:
        known = FORWARDS.get(path_of(cls))
        if known is not None:
            return known
        if "kernel_layer_name" in cls.__dict__:
            return by_name
        if "forward" in cls.__dict__ and not issubclass(cls, Foreign):
            return as_before
    return as_before


def _is_alike(module: Any, x: Tensor) -> bool:
    """Whether a layer has what functions read, and the input's dtype, which then is the result's."""
    weight = getattr(module, "weight", None)
    has_eps = any(isinstance(getattr(module, name, None), float) for name in EPSILONS)
    return has_eps and weight is not None and weight.shape == x.shape[-1:] and same_dtype(x, weight)


def rms_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """RMS normalisation of a layer of another class that is decorated `RMSNorm`."""
    x = hidden_states
    return llama_rms_norm(module, x) if _is_alike(module, x) else as_before(module, x)


def zero_centered_rms_norm(module: Any, x: Tensor) -> Tensor:
    """RMS normalisation of a layer of another class that is decorated `RMSNormZeroCentered`."""
    return gemma_rms_norm(module, x) if _is_alike(module, x) else as_before(module, x)


def gated_rms_norm(module: Any, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
    """RMS normalisation before a gate of a layer of another class that is decorated `RMSNormGated`."""
    x = hidden_states
    if hasattr(module, "activation") and _is_alike(module, x):
        return qwen3_next_gated_norm(module, x, gate)
    return as_before(module, x, gate)


def layer_norm(module: Any, input: Tensor) -> Tensor:
    """Layer normalisation of a layer of a class that is decorated `LayerNorm`, such as torch.nn's."""
    return functional.layer_norm(input, module.normalized_shape, module.weight, module.bias, module.eps)


class RMSNorm(nn.Module):
    """RMS normalisation: of `weight`, `variance_epsilon` or `eps`."""

    has_backward, can_torch_compile = True, True

    def forward(self, hidden_states: Tensor) -> Tensor:
        return forward_of(self, rms_norm)(self, hidden_states)


class RMSNormZeroCentered(nn.Module):
    """RMS normalisation with the weight 1 + `weight`, in the dtype of the input."""

    has_backward, can_torch_compile = True, True

    def forward(self, x: Tensor) -> Tensor:
        return forward_of(self, zero_centered_rms_norm)(self, x)


class RMSNormGated(nn.Module):
    """RMS normalisation before a gate: of `weight`, `variance_epsilon` or `eps`, and `activation`."""

    has_backward, can_torch_compile = True, True

    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        return forward_of(self, gated_rms_norm)(self, hidden_states, gate)


class LayerNorm(nn.Module):
    """Layer normalisation: of `normalized_shape`, `weight`, `bias` and `eps`."""

    has_backward, can_torch_compile = True, True

    def forward(self, input: Tensor) -> Tensor:
        return forward_of(self, layer_norm)(self, input)

"""`group_norm`, and `group_norm_act` with the activation that follows it, in the same launches."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normreg.functional import dispatch
from normreg.functional.output_dtype import asked_dtype, check_out_dtype, rounded_to
from normreg.kernels.memory_format import is_channels_last
from normreg.ops.activations import activation_in_torch, check_activation
from normreg.ops.group_norm import group_norm as _group_norm
from normreg.ops.group_norm_act import group_norm_act as _group_norm_act


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Normalisation of each sample's groups of C / num_groups adjacent channels of an (N, C, *) input.

    y = (x - E[x]) / sqrt(Var[x] + eps) * weight + bias, with the biased variance, per sample and group.

    Args:
        input: (N, C, *), float16, bfloat16, float32 or float64, any strides.
        num_groups: divides C.
        weight, bias: (C,) or None; of input's dtype, or float32 beside 16 bits.
        eps: added to the variance.
        out_dtype: that of `layer_norm`.

    Returns a tensor of input's shape. It is channels-last where torch's result of such input is, on a CPU,
    and on a GPU since torch 2.15, and the kernel then reads input as it is; else it is contiguous, and the
    kernel reads a copy. Raises what `torch.nn.functional.group_norm` raises: RuntimeError for channel counts,
    devices and dtypes, ValueError for a single value. Statistics are computed and kept in float32, float64
    for float64. Where the kernel does not apply (`normreg.functional.dispatch`) this is torch's operator.

    Equivalent::

        groups = x.reshape(x.shape[0], num_groups, -1)
        mean, var = groups.mean(2, keepdim=True), groups.var(2, correction=0, keepdim=True)
        y = ((groups - mean) / (var + eps).sqrt()).view(x.shape)
        y = y * weight[:, None, None] + bias[:, None, None]    # (N, C, H, W)

    Source: Wu and He, "Group Normalization" (2018), arXiv 1803.08494;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.group_norm.html
    """
    if out_dtype is not None:
        check_out_dtype(out_dtype)
    if dispatch.group_norm(input, num_groups, weight, bias, eps):
        in_torch = rounded_to(F.group_norm, asked_dtype(input, out_dtype))
        return in_torch(input, num_groups, weight, bias, eps)
    if not (input.is_contiguous() or dispatch.group_norm_keeps_channels_last(input, (weight, bias))):
        input = input.contiguous()
    out_dtype = dispatch.layer_norm_dtype(input, out_dtype)
    return _group_norm(input, weight, bias, num_groups, eps, out_dtype)


@dispatch.decision("group_norm_act")
def group_norm_act_reason(x: Any, negative_slope: Any, *arguments_of_group_norm: Any) -> str | None:
    reason = dispatch.groups_reason(x, *arguments_of_group_norm)
    return reason or dispatch.number_reason(negative_slope=negative_slope)


def group_norm_act(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    act: str | None = "silu",
    negative_slope: float = 0.01,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Group normalisation, then an activation, in the launches of `group_norm` alone.

    y = act(group_norm(x)). The backward computes the activation's input from x once more, and keeps what that
    of `group_norm` keeps, and bias.

    Args:
        input, num_groups, weight, bias, eps: those of `group_norm`.
        act, negative_slope: those of `batch_norm_act`.
        out_dtype: that of `layer_norm`.

    Returns a tensor of input's shape, channels-last where input is, else contiguous. The kernel reads
    contiguous and channels-last input as it is, and a copy of input with other strides. Raises ValueError for
    another act, TypeError for a negative_slope that is no number, and what `group_norm` raises. Where the
    kernel does not apply (`normreg.functional.dispatch`), this is the equivalent below.

    Equivalent::

        y = F.silu(F.group_norm(x, num_groups, weight, bias, eps))    # and so on

    Sources: Wu and He, "Group Normalization" (2018), arXiv 1803.08494; Ho, Jain and Abbeel, "Denoising
    Diffusion Probabilistic Models" (2020), arXiv 2006.11239, whose networks consist of such pairs;
    https://github.com/huggingface/pytorch-image-models/blob/main/timm/layers/norm_act.py
    """
    check_activation(act, negative_slope)
    check_out_dtype(out_dtype)
    if group_norm_act_reason(input, negative_slope, num_groups, weight, bias, eps):
        asked = asked_dtype(input, out_dtype)
        return rounded_to(_normed_and_activated(act, negative_slope), asked)(
            input, num_groups, weight, bias, eps
        )
    if not (input.is_contiguous() or is_channels_last(input)):
        input = input.contiguous()
    out_dtype = dispatch.layer_norm_dtype(input, out_dtype)
    return _group_norm_act(input, weight, bias, act, negative_slope, num_groups, eps, out_dtype)


def _normed_and_activated(act: str | None, negative_slope: float) -> Callable[..., Tensor]:
    """torch's operators, as a function of the arguments of `F.group_norm`."""
    return lambda *arguments: activation_in_torch(F.group_norm(*arguments), act, negative_slope)

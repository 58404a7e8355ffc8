"""`bias_act_dropout`: what stands between the two linear layers of a block, in one launch."""

from typing import Any

import torch
from torch import Tensor

from normreg.functional import dispatch
from normreg.functional.dropouts import check_generator, dropout_in_torch
from normreg.functional.tracing import one_call_when_traced
from normreg.kernels.dropout.drop import of_elements
from normreg.ops import bias_act_dropout as _bias_act_dropout
from normreg.ops.activations import activation_in_torch, check_activation


@dispatch.decision("bias_act_dropout")
def bias_act_dropout_reason(x: Any, bias: Any, p: Any, negative_slope: Any) -> str | None:
    reason = (
        dispatch.tensor_reason(x, (bias,))
        or dispatch.dtype_reason(x, (bias,))
        or dispatch.number_reason(p=p, negative_slope=negative_slope)
    )
    if reason:
        return reason
    if not 0 <= p <= 1:
        return f"p is {p}"
    if x.dim() == 0:
        return "the input has no dimensions"
    if bias is not None and bias.shape != x.shape[-1:]:
        return f"the bias has shape {tuple(bias.shape)}, the input {x.shape[-1]} columns"
    return None


@one_call_when_traced
def bias_act_dropout(
    input: Tensor,
    bias: Tensor | None = None,
    act: str | None = "gelu",
    p: float = 0.5,
    training: bool = True,
    *,
    negative_slope: float = 0.01,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Bias, activation and dropout in one launch: what stands between the two linear layers of a block.

    y = dropout(act(x + bias)). The backward computes x + bias and its activation once more and draws the mask
    again, so it needs only x and bias.

    Args:
        input: (*, C), float16, bfloat16, float32 or float64, any strides.
        bias: (C,), of input's dtype, or float32 beside 16 bits; or None.
        act, negative_slope: those of `batch_norm_act`.
        p, training, generator: those of `dropout`. For p = 0 and without training nothing is dropped.

    Returns a contiguous tensor of input's shape and dtype. Where the kernel does not apply
    (`normreg.functional.dispatch`), this is the equivalent below. Raises ValueError for another act,
    another shape of bias and p outside [0, 1], TypeError for a generator that is not a torch.Generator, and
    RuntimeError for one of another device.

    Equivalent::

        y = F.dropout(F.gelu(x + bias), p, training)    # and so on

    Source: Shoeybi et al., "Megatron-LM" (2019), arXiv 1909.08053, which fuses the same operations
    """
    check_activation(act, negative_slope)
    if bias is not None and bias.shape != input.shape[-1:]:
        raise ValueError(
            f"expected a bias of shape {tuple(input.shape[-1:])}, got {tuple(bias.shape)}: pass one "
            f"with as many elements as the input's last dimension has"
        )
    if generator is not None:
        check_generator(input, generator)
    p = p if training else 0.0
    if bias_act_dropout_reason(input, bias, p, negative_slope):
        z = input if bias is None else (input + bias).to(input.dtype)
        return dropout_in_torch(activation_in_torch(z, act, negative_slope), p, generator)
    rule = of_elements(p, input.dtype)
    return _bias_act_dropout.bias_act_dropout(input, bias, act, negative_slope, rule, generator)

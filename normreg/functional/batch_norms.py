"""`batch_norm`, and `batch_norm_act` with what follows it in residual blocks, in the same launches."""

from typing import Any

from torch import Tensor

from normreg.functional import dispatch
from normreg.functional.residual import check_broadcasts, check_can_be_added, residual_reason
from normreg.ops import batch_norm as _batch_norm
from normreg.ops import batch_norm_act as _batch_norm_act
from normreg.ops.activations import activation_in_torch, check_activation


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    r"""Batch normalisation of each channel of an (N, C) or (N, C, *) input.

    y = (x - mean) / sqrt(var + eps) * weight + bias. In training, mean and biased variance of the batch
    are used, and running_mean and running_var, where given, are updated in place:
    running = (1 - momentum) * running + momentum * batch, with the unbiased variance. Otherwise
    mean = running_mean and var = running_var.

    Args:
        input: (N, C, *), float16, bfloat16, float32 or float64, any strides.
        running_mean, running_var: (C,), both or neither.
        weight, bias: (C,) or None; like the statistics of input's dtype, or float32 beside 16 bits.
        momentum: the weight of the new batch; None, with num_batches_tracked, for the cumulative average,
            1 / num_batches_tracked.
        eps: added to the variance.
        num_batches_tracked: an int64 scalar that training increments, which torch leaves to its layer.

    Returns a tensor of input's shape and dtype, channels-last where input is, else contiguous. Raises what
    `torch.nn.functional.batch_norm` raises: RuntimeError for wrong channel counts, devices and dtypes,
    ValueError for one value per channel in training and for eps <= 0. No kernel has updated anything by then.
    Where the kernel does not apply (`normreg.functional.dispatch`) this is torch's operator.

    Equivalent::

        dims = (0, *range(2, x.dim()))
        mean, var = x.mean(dims), x.var(dims, correction=0)
        y = (x - mean[:, None, None]) / (var[:, None, None] + eps).sqrt()    # (N, C, H, W)
        y = y * weight[:, None, None] + bias[:, None, None]

    Source: Ioffe and Szegedy, "Batch Normalization" (2015), arXiv 1502.03167;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.batch_norm.html
    """
    tracked = num_batches_tracked if training else None
    statistics = (running_mean, running_var)
    if not dispatch.batch_norm(input, *statistics, weight, bias, training, momentum, eps, tracked):
        return _batch_norm.batch_norm(input, weight, bias, *statistics, tracked, training, momentum, eps)
    return _batch_norm.in_torch(input, *statistics, weight, bias, training, momentum, eps, tracked)


@dispatch.decision("batch_norm_act")
def batch_norm_act_reason(
    x: Any, residual: Any, negative_slope: Any, *arguments_of_batch_norm: Any
) -> str | None:
    channels = dispatch.channels_reason(x, *arguments_of_batch_norm)
    reason = channels or dispatch.number_reason(negative_slope=negative_slope)
    if reason or residual is None:
        return reason
    if isinstance(residual, Tensor) and residual.dtype != x.dtype:
        return f"the residual is {residual.dtype}, the input {x.dtype}"
    return residual_reason(x, residual)


def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    act: str | None = "relu",
    residual: Tensor | None = None,
    negative_slope: float = 0.01,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    r"""`batch_norm`, then the sum with a residual, then an activation, in the launches of `batch_norm` alone.

    y = act(batch_norm(x) + residual). The kernels read what those of `batch_norm` read, and the residual. The
    backward computes the activation's input from x once more. Without a residual it keeps what `batch_norm`
    keeps; with one, also one bit an element for relu, relu6 and leaky_relu, and the residual itself for the
    other activations.

    Args:
        input, running_mean, running_var, weight, bias, training, momentum, eps, num_batches_tracked: those of
            `batch_norm`.
        act: None, "relu", "relu6", "leaky_relu", "silu", "gelu", "gelu_tanh" (`F.gelu(approximate="tanh")`)
            or "hardswish".
        residual: of input's shape and dtype, any strides, or None.
        negative_slope: slope of leaky_relu below 0.

    Returns a tensor of input's shape and dtype, channels-last where input is, else contiguous. Raises
    ValueError for another act and for a residual that is no tensor of a floating-point dtype or cannot be
    added, TypeError for a negative_slope that is no number, and what `batch_norm` raises. Where the kernel
    does not apply (`normreg.functional.dispatch`), as for a residual that is broadcast or has another such
    dtype, this is the equivalent below.

    Equivalent::

        y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        y = F.relu(y + residual)    # and so on

    Sources: He et al., "Deep Residual Learning" (2015), arXiv 1512.03385;
    https://docs.pytorch.org/docs/stable/nn.functional.html
    """
    check_activation(act, negative_slope)
    tracked = num_batches_tracked if training else None
    statistics, options = (running_mean, running_var), (training, momentum, eps)
    arguments = *statistics, weight, bias, *options, tracked
    if not batch_norm_act_reason(input, residual, negative_slope, *arguments):
        return _batch_norm_act.batch_norm_act(
            input, weight, bias, residual, act, negative_slope, *statistics, tracked, *options
        )
    if residual is not None:
        check_can_be_added(residual)
        check_broadcasts(input, residual)
    y = _batch_norm.in_torch(input, *arguments)
    return activation_in_torch(y if residual is None else y + residual, act, negative_slope)

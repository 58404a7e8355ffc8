"""`torch.nn.functional`'s signatures: choose the path, call the operation."""

import torch
import torch.nn.functional as F

from normreg.distributed import sharding
from normreg.functional import dispatch
from normreg.functional.batch_norms import batch_norm_act as batch_norm_act
from normreg.functional.residual import bias_act_dropout as bias_act_dropout
from normreg.functional.residual import check_generator
from normreg.functional.residual import drop_path_add as drop_path_add
from normreg.functional.residual import dropout_add as dropout_add
from normreg.functional.residual import dropout_add_layer_norm as dropout_add_layer_norm
from normreg.functional.residual import dropout_add_rms_norm as dropout_add_rms_norm
from normreg.functional.synchronized import sync_batch_norm as sync_batch_norm
from normreg.kernels.dtypes import compute_dtype
from normreg.ops import autocast
from normreg.ops import batch_norm as _batch_norm
from normreg.ops import dropout as _dropout
from normreg.ops.group_norm import group_norm as _group_norm
from normreg.ops.instance_norm import instance_norm as _instance_norm
from normreg.ops.layer_norm import layer_norm as _layer_norm
from normreg.ops.layer_norm_channels import layer_norm_channels as _layer_norm_channels
from normreg.ops.rms_norm import rms_norm as _rms_norm

__all__ = [
    "alpha_dropout",
    "batch_norm",
    "batch_norm_act",
    "bias_act_dropout",
    "drop_path",
    "drop_path_add",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_add",
    "dropout_add_layer_norm",
    "dropout_add_rms_norm",
    "feature_alpha_dropout",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "layer_norm_channels",
    "rms_norm",
    "sync_batch_norm",
]


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, *, residual=None, prenorm=False):
    r"""Layer normalisation over the trailing dimensions `normalized_shape`.

    y = (x - E[x]) / sqrt(Var[x] + eps) * weight + bias, with the biased variance, per leading index.

    Args:
        input: (*, *normalized_shape), float16, bfloat16, float32 or float64, any strides.
        normalized_shape: the trailing dimensions, a sequence of ints.
        weight, bias: of shape normalized_shape, or None; of input's dtype, or float32 beside 16 bits.
        eps: added to the variance.
        residual: x is input + residual, in the same launch: `dropout_add_layer_norm` that drops nothing.
        prenorm: return (y, x), the sum as well.

    Returns a contiguous tensor of input's shape and dtype (float32 where CUDA's autocast is on).
    Statistics are computed and kept in float32, float64 for float64. Where the kernel does not apply
    (`normreg.functional.dispatch`), and for input that torch rejects, this is
    `torch.nn.functional.layer_norm`.

    Equivalent::

        mean = x.mean(dims, keepdim=True)                   # dims: the trailing dimensions
        var = x.var(dims, correction=0, keepdim=True)
        y = (x - mean) / (var + eps).sqrt() * weight + bias

    Source: Ba, Kiros and Hinton, "Layer Normalization" (2016), arXiv 1607.06450;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.layer_norm.html
    """
    if residual is not None or prenorm:
        parameters = normalized_shape, weight, bias, 0.0, False, eps
        return dropout_add_layer_norm(input, residual, *parameters, prenorm=prenorm)
    if dispatch.layer_norm(input, normalized_shape, weight, bias, eps):
        return sharding.over_rows(layer_norm, F.layer_norm, input)(input, normalized_shape, weight, bias, eps)
    return _layer_norm(input, weight, bias, tuple(normalized_shape), eps, autocast.layer_norm_dtype(input))


def layer_norm_channels(input, weight=None, bias=None, eps=1e-6):
    r"""Layer normalisation over the channels of each position of an (N, C, *) input, as timm's LayerNorm2d.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and biased variance over C.

    Args:
        input: (N, C, *), float16, bfloat16, float32 or float64. Contiguous and channels-last input is taken
            as it is, other strides are copied.
        weight, bias: (C,) or None; of input's dtype, or float32 beside 16 bits.
        eps: added to the variance.

    Returns a tensor of input's shape and dtype (float32 where CUDA's autocast is on), contiguous where
    input is, else channels-last. Where the kernel does not apply (`normreg.functional.dispatch`), and for
    input that torch rejects, this is the equivalent, whose result is channels-last.

    Equivalent::

        y = torch.nn.functional.layer_norm(x.movedim(1, -1), (C,), weight, bias, eps).movedim(-1, 1)

    Source: Liu et al., "A ConvNet for the 2020s" (2022), arXiv 2201.03545;
    https://github.com/huggingface/pytorch-image-models/blob/main/timm/layers/norm.py
    """
    reason = dispatch.layer_norm_channels(input, weight, bias, eps)
    rows = input.movedim(1, -1)
    if reason:
        return layer_norm(rows, rows.shape[-1:], weight, bias, eps).movedim(-1, 1)
    out_dtype = autocast.layer_norm_dtype(input)
    if rows.is_contiguous():
        return _layer_norm(rows, weight, bias, tuple(rows.shape[-1:]), eps, out_dtype).movedim(-1, 1)
    return _layer_norm_channels(input, weight, bias, eps, out_dtype)


def rms_norm(input, normalized_shape, weight=None, eps=None, *, residual=None, prenorm=False):
    r"""Normalisation by the root mean square over the trailing dimensions `normalized_shape`.

    y = x / sqrt(E[x^2] + eps) * weight, per leading index.

    Args:
        input: (*, *normalized_shape), float16, bfloat16, float32 or float64, any strides.
        normalized_shape: the trailing dimensions, a sequence of ints.
        weight: of shape normalized_shape, or None; of input's dtype, or float32 beside 16 bits.
        eps: added to the mean square; None for the machine epsilon of the dtype computed in, which is
            float32 for 16-bit input.
        residual, prenorm: those of `layer_norm`.

    Returns a contiguous tensor of input's shape and dtype (float32 where CUDA's autocast is on and torch
    2.12 or newer). The mean square is computed, and its inverse root kept, in float32, float64 for float64.
    Where the kernel does not apply (`normreg.functional.dispatch`), and for input that torch rejects, this is
    `torch.nn.functional.rms_norm`.

    Equivalent::

        rstd = (x.square().mean(dims, keepdim=True) + eps).rsqrt()    # dims: the trailing dimensions
        y = x * rstd * weight

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), arXiv 1910.07467;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.rms_norm.html
    """
    if residual is not None or prenorm:
        parameters = normalized_shape, weight, 0.0, False, eps
        return dropout_add_rms_norm(input, residual, *parameters, prenorm=prenorm)
    if dispatch.rms_norm(input, normalized_shape, weight, eps):
        return sharding.over_rows(rms_norm, F.rms_norm, input)(input, normalized_shape, weight, eps)
    if eps is None:
        eps = torch.finfo(compute_dtype(input.dtype)).eps
    return _rms_norm(input, weight, tuple(normalized_shape), eps, autocast.rms_norm_dtype(input))


def batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5,
    *, num_batches_tracked=None,
):  # fmt: skip
    r"""Batch normalisation of each channel of an (N, C) or (N, C, *) input.

    y = (x - mean) / sqrt(var + eps) * weight + bias. In training, mean and biased variance of the batch
    are used, and running_mean and running_var, where given, are updated in place:
    running = (1 - momentum) * running + momentum * batch, with the unbiased variance. Otherwise
    mean = running_mean and var = running_var.

    Args:
        input: (N, C, *), float16, bfloat16, float32 or float64, any strides.
        running_mean, running_var: (C,), both or neither.
        weight, bias: (C,) or None; of input's dtype, or float32 beside 16 bits, as are the statistics.
        momentum: the weight of the new batch; None, with num_batches_tracked, for the cumulative average,
            1 / num_batches_tracked.
        eps: added to the variance.
        num_batches_tracked: an int64 scalar to increment in training; torch's layer does it outside.

    Returns a tensor of input's shape and dtype, channels-last where input is, else contiguous. Raises
    what `torch.nn.functional.batch_norm` raises: RuntimeError for wrong channel counts, devices and
    dtypes, ValueError for one value per channel in training and for eps; then no kernel has updated anything.
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


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    r"""Normalisation of each sample's groups of C / num_groups adjacent channels of an (N, C, *) input.

    y = (x - E[x]) / sqrt(Var[x] + eps) * weight + bias, with the biased variance, per sample and group.

    Args:
        input: (N, C, *), float16, bfloat16, float32 or float64, any strides.
        num_groups: divides C.
        weight, bias: (C,) or None; of input's dtype, or float32 beside 16 bits.
        eps: added to the variance.

    Returns a contiguous tensor of input's shape and dtype (float32 where CUDA's autocast is on); but
    channels_last input goes to torch's operator where torch's result keeps it: on a CPU, and on a GPU from
    torch 2.15 on. Raises what `torch.nn.functional.group_norm` raises: RuntimeError for channel counts,
    devices and dtypes, ValueError for one value in all. Statistics are computed and kept in float32, float64
    for float64. Where the kernel does not apply (`normreg.functional.dispatch`) this is torch's operator.

    Equivalent::

        groups = x.reshape(x.shape[0], num_groups, -1)
        mean, var = groups.mean(2, keepdim=True), groups.var(2, correction=0, keepdim=True)
        y = ((groups - mean) / (var + eps).sqrt()).view(x.shape)
        y = y * weight[:, None, None] + bias[:, None, None]    # (N, C, H, W)

    Source: Wu and He, "Group Normalization" (2018), arXiv 1803.08494;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.group_norm.html
    """
    if dispatch.group_norm(input, num_groups, weight, bias, eps):
        return F.group_norm(input, num_groups, weight, bias, eps)
    return _group_norm(input, weight, bias, num_groups, eps, autocast.layer_norm_dtype(input))


def instance_norm(
    input,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
):
    r"""Normalisation of each channel of each sample of an (N, C, *) input over its positions.

    y = (x - mean) / sqrt(var + eps) * weight + bias. With use_input_stats, mean and biased variance of the
    channel of the sample are used, and running_mean and running_var, where given, are updated in place:
    running = (1 - momentum) * running + momentum * (mean over the samples), with the unbiased variance.
    Otherwise mean = running_mean and var = running_var, which is `batch_norm` in evaluation.

    Args:
        input: (N, C, *), float16, bfloat16, float32 or float64, any strides.
        running_mean, running_var: (C,), both or neither.
        weight, bias: (C,) or None. All four share input's dtype, or are float32 beside 16 bits.
        use_input_stats: a bool.
        momentum: the weight of the new statistics.
        eps: added to the variance.

    Returns a contiguous tensor of input's shape and dtype, whatever input's strides, as torch does; other
    strides are copied. Raises what `torch.nn.functional.instance_norm` raises: RuntimeError for channel
    counts, devices and dtypes, ValueError for one position; then no kernel has updated anything. Where the
    kernel does not apply (`normreg.functional.dispatch`) this is torch's operator.

    Equivalent::

        dims = tuple(range(2, x.dim()))
        mean, var = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
        y = (x - mean) / (var + eps).sqrt()
        y = y * weight[:, None, None] + bias[:, None, None]    # (N, C, H, W)

    Source: Ulyanov, Vedaldi and Lempitsky, "Instance Normalization" (2016), arXiv 1607.08022;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.instance_norm.html
    """
    statistics = (running_mean, running_var)
    if dispatch.instance_norm(input, *statistics, weight, bias, use_input_stats, momentum, eps):
        return F.instance_norm(input, *statistics, weight, bias, use_input_stats, momentum, eps)
    if use_input_stats:
        return _instance_norm(input, weight, bias, *statistics, momentum, eps)
    return _batch_norm.batch_norm(input.contiguous(), weight, bias, *statistics, None, False, momentum, eps)


def _dims(input):
    return input.dim() if isinstance(input, torch.Tensor) else None


def _dropout_by(rule, torchs, input, p, training, inplace, generator, usual_dims=None):
    """torch's function `torchs` by the kernel of `rule`; torch judges p and other dimensions than usual."""
    if generator is not None:
        check_generator(input, generator)
    if not training:
        return torchs(input, p, training, inplace)
    if not dispatch.dropout(input, p, inplace, rule.leading):
        if usual_dims is not None and input.dim() not in usual_dims:
            torchs(input, p, training=False)
        return _dropout.dropout(input, rule, inplace, generator)
    if kept := sharding.elements_kept(input, p, inplace, rule.leading):
        part, own = kept.local(input), kept.generator(generator)
        return kept.result(_dropout_by(rule, torchs, part, p, training, inplace, own), input)
    # for none of these torch draws, or it raises
    if generator is None or p in (0, 1) or input.numel() == 0 or input.dim() < (rule.leading or 0):
        return torchs(input, p, training, inplace)
    torchs(input, p, training=False)
    return _dropout.in_torch(input, rule, inplace, generator)


def dropout(input, p=0.5, training=True, inplace=False, *, generator=None):
    r"""Zeroes each element with probability p and scales the others by 1 / (1 - p).

    The mask follows torch's generator of the input's device, is the same for a tensor and a view of
    it with other strides, and is never stored: the backward regenerates it from its seed. It is not
    torch's mask for the same generator state, nor need torch.compile's be that of eager mode. Dropped
    elements are exactly 0, also inf and nan.

    Args:
        input: any shape, float16, bfloat16, float32 or float64.
        p: probability of zero, in [0, 1]; rounded to a multiple of 2^-32 (2^-16 for 16-bit types and p
            in [2^-8, 1 - 2^-8], where every element is decided by itself), which the scale accounts for
            exactly.
        training: without it, input itself is returned; as it is for p = 0.
        inplace: write the result into input.
        generator: a torch.Generator of input's device that decides the mask instead of the default one.
            From two in the same state, dropout(x) and dropout(torch.ones_like(x)) drop the same elements.
            Activation checkpointing sets back the default one alone.

    Raises ValueError for p outside [0, 1], RuntimeError for what torch refuses to change in place and for
    a generator of another device. Where the kernel does not apply (`normreg.functional.dispatch`) this is
    `torch.nn.functional.dropout`; with a generator, the operations that one consists of.

    Equivalent::

        keep = torch.rand_like(x) >= p
        y = torch.where(keep, x / (1 - p), 0)

    Source: Srivastava et al., "Dropout" (JMLR 2014);
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout.html
    """
    rule = _dropout.Rule(p)
    return _dropout_by(rule, F.dropout, input, p, training, inplace, generator)


def alpha_dropout(input, p=0.5, training=False, inplace=False, *, generator=None):
    r"""Sets each element to SELU's negative saturation with probability p, and restores mean and variance.

    y = a * (x if kept else alpha) + b with alpha = -1.7581, where a and b are such that mean 0 and
    variance 1 of the input are those of the output. They follow from the probability of being kept to
    which p is rounded, exactly. Arguments, mask and errors are those of `dropout`; for p = 1 the output is
    0, as torch's is.

    Equivalent::

        keep = torch.rand_like(x) >= p
        a = ((1 - p) * (1 + p * alpha**2)) ** -0.5
        y = a * torch.where(keep, x, alpha) - a * alpha * p

    Source: Klambauer et al., "Self-Normalizing Neural Networks" (2017), arXiv 1706.02515;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.alpha_dropout.html
    """
    rule = _dropout.Rule(p, constants="alpha")
    return _dropout_by(rule, F.alpha_dropout, input, p, training, inplace, generator)


def dropout1d(input, p=0.5, training=True, inplace=False, *, generator=None):
    r"""Zeroes each channel of an (N, C, L) or (C, L) input with probability p; as `dropout` otherwise.

    Equivalent::

        keep = torch.rand(*x.shape[:-1], 1) >= p
        y = torch.where(keep, x / (1 - p), 0)

    Source: Tompson et al., "Efficient Object Localization Using Convolutional Networks" (CVPR 2015);
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout1d.html
    """
    rule = _dropout.Rule(p, leading=1 if _dims(input) == 2 else 2)
    return _dropout_by(rule, F.dropout1d, input, p, training, inplace, generator, usual_dims=(2, 3))


def dropout2d(input, p=0.5, training=True, inplace=False, *, generator=None):
    r"""Zeroes each channel of an (N, C, H, W) input with probability p; as `dropout` otherwise.

    As torch does, it warns of an input of other dimensions and takes the first two for N and C, so that
    three are (N, C, L). Channels-last input and its gradient stay so without a copy.

    Equivalent::

        keep = torch.rand(*x.shape[:2], 1, 1) >= p
        y = torch.where(keep, x / (1 - p), 0)

    Source: Tompson et al., "Efficient Object Localization Using Convolutional Networks" (CVPR 2015);
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout2d.html
    """
    rule = _dropout.Rule(p, leading=2)
    return _dropout_by(rule, F.dropout2d, input, p, training, inplace, generator, usual_dims=(4,))


def dropout3d(input, p=0.5, training=True, inplace=False, *, generator=None):
    r"""Zeroes each channel of an (N, C, D, H, W) or (C, D, H, W) input with probability p; else as `dropout`.

    As torch does, it warns of an input of other dimensions and takes the first one for C.

    Equivalent::

        keep = torch.rand(*x.shape[:-3], 1, 1, 1) >= p
        y = torch.where(keep, x / (1 - p), 0)

    Source: Tompson et al., "Efficient Object Localization Using Convolutional Networks" (CVPR 2015);
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout3d.html
    """
    rule = _dropout.Rule(p, leading=2 if _dims(input) == 5 else 1)
    return _dropout_by(rule, F.dropout3d, input, p, training, inplace, generator, usual_dims=(4, 5))


def feature_alpha_dropout(input, p=0.5, training=False, inplace=False, *, generator=None):
    r"""`alpha_dropout` of whole channels: those of an (N, C, *) input share a decision.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.feature_alpha_dropout.html
    """
    rule = _dropout.Rule(p, leading=2, constants="alpha")
    return _dropout_by(rule, F.feature_alpha_dropout, input, p, training, inplace, generator)


def drop_path(x, drop_prob=0.0, training=False, scale_by_keep=True, *, generator=None):
    r"""Stochastic depth: zeroes each sample of an (N, *) input with probability drop_prob.

    The others are scaled by 1 / (1 - drop_prob), or without scale_by_keep left as they are. Mask, dtypes
    and generator are those of `dropout`; x itself is returned without training and for drop_prob = 0.
    Where the kernel does not apply (`normreg.functional.dispatch`), this is the equivalent below. Raises
    RuntimeError for drop_prob outside [0, 1].

    Equivalent, and what timm computes::

        noise = x.new_empty(len(x), *(1,) * (x.dim() - 1)).bernoulli_(1 - drop_prob)
        y = x * noise / (1 - drop_prob)

    Source: Huang et al., "Deep Networks with Stochastic Depth" (ECCV 2016), arXiv 1603.09382;
    https://github.com/huggingface/pytorch-image-models/blob/main/timm/layers/drop.py
    """
    if generator is not None:
        check_generator(x, generator)
    if drop_prob == 0.0 or not training:
        return x
    rule = _dropout.Rule(drop_prob, 1, "scaled" if scale_by_keep else "unscaled")
    if dispatch.dropout(x, drop_prob, False, rule.leading):
        return _dropout.in_torch(x, rule, generator=generator)
    return _dropout.dropout(x, rule, generator=generator)

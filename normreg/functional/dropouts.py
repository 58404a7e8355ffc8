"""torch's dropouts, and timm's `drop_path`."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normreg.distributed import sharding
from normreg.functional import dispatch
from normreg.ops import dropout as _dropout


def check_generator(input: Any, generator: Any) -> None:
    """Raises TypeError or RuntimeError unless `generator` can draw a mask for `input`."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"expected generator to be a torch.Generator or None, got {type(generator).__name__}: make one "
            f"with torch.Generator(input.device)"
        )
    if not isinstance(input, Tensor):
        raise TypeError(
            f"expected a torch.Tensor to draw a mask for, got {type(input).__name__}: pass a tensor, as by "
            f"torch.as_tensor(input)"
        )
    # a tensor on meta has no mask
    if input.device.type != "meta" and generator.device != input.device:
        raise RuntimeError(
            f"expected a generator of the input's device, {input.device}, got one of {generator.device}: "
            f"make it with torch.Generator({str(input.device)!r})"
        )


def check_drop_prob(drop_prob: Any) -> None:
    """Raises ValueError for a number outside [0, 1], which torch would name by 1 minus it."""
    if isinstance(drop_prob, (int, float)) and not 0 <= drop_prob <= 1:
        raise ValueError(
            f"expected drop_prob to be between 0 and 1, got {drop_prob}: pass a probability, such as 0.1"
        )


def _dropout_by(
    rule: _dropout.Rule,
    torch_dropout: Callable[..., Tensor],
    input: Tensor,
    p: float,
    training: bool,
    inplace: bool,
    generator: torch.Generator | None,
    usual_dims: tuple[int, ...] | None = None,
) -> Tensor:
    """Runs `torch_dropout` on the kernel where it applies; torch checks p and the number of dimensions."""
    if generator is not None:
        check_generator(input, generator)
    if training is not True:  # which torch judges
        return torch_dropout(input, p, training, inplace)
    if not dispatch.dropout(input, p, inplace, rule.leading):
        if usual_dims is not None and input.dim() not in usual_dims:
            torch_dropout(input, p, training=False)
        return _dropout.dropout(input, rule, inplace, generator)
    if kept := sharding.elements_kept(input, p, inplace, rule.leading):
        part, own = kept.local(input), kept.generator(generator)
        return kept.result(_dropout_by(rule, torch_dropout, part, p, training, inplace, own), input)
    # calls for which torch draws nothing, or raises
    if generator is None or p in (0, 1) or input.numel() == 0 or input.dim() < (rule.leading or 0):
        return torch_dropout(input, p, training, inplace)
    torch_dropout(input, p, training=False)
    return _dropout.in_torch(input, rule, inplace, generator)


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Zeroes each element with probability p and scales the others by 1 / (1 - p).

    The mask follows torch's generator of the input's device, is the same for a tensor and a view of it with
    other strides, and is never stored: the backward regenerates it from its seed. For the same generator
    state torch's mask is another one, and torch.compile's may be. A dropped element becomes exactly 0, even
    inf and nan.

    Args:
        input: any shape, float16, bfloat16, float32 or float64. Contiguous input is read as it is, and so is
            channels-last input whose positions are a multiple of 8 (4 of 32 bits); others are copied.
        p: probability of zero, in [0, 1]. It is rounded to a multiple of 2^-32 (2^-16 for 16-bit types and p
            in [2^-8, 1 - 2^-8], where each element has an outcome of its own); the scale is that of the
            rounded p.
        training: without training, and for p = 0, input itself is returned.
        inplace: write the result into input.
        generator: a torch.Generator of input's device that decides the mask instead of the default one.
            With two in the same state, dropout(x) and dropout(torch.ones_like(x)) drop the same elements.
            Activation checkpointing restores only the default one.

    Raises ValueError for p outside [0, 1], RuntimeError for what torch refuses to change in place and for
    a generator of another device. Where the kernel does not apply (`normreg.functional.dispatch`) this is
    `torch.nn.functional.dropout`; with a generator, the operations that it consists of.

    Equivalent::

        keep = torch.rand_like(x) >= p
        y = torch.where(keep, x / (1 - p), 0)

    Source: Srivastava et al., "Dropout" (JMLR 2014);
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout.html
    """
    rule = _dropout.Rule(p)
    return _dropout_by(rule, F.dropout, input, p, training, inplace, generator)


def alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Sets each element to SELU's negative saturation with probability p, and restores mean and variance.

    y = a * (x if kept else alpha) + b with alpha = -1.7581, where a and b are such that an input of mean 0
    and variance 1 gives an output of mean 0 and variance 1. They follow exactly from the probability that p
    is rounded to. Arguments, mask and errors are those of `dropout`; for p = 1 the output is 0, as torch's
    is.

    Equivalent::

        keep = torch.rand_like(x) >= p
        a = ((1 - p) * (1 + p * alpha**2)) ** -0.5
        y = a * torch.where(keep, x, alpha) - a * alpha * p

    Source: Klambauer et al., "Self-Normalizing Neural Networks" (2017), arXiv 1706.02515;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.alpha_dropout.html
    """
    rule = _dropout.Rule(p, constants="alpha")
    return _dropout_by(rule, F.alpha_dropout, input, p, training, inplace, generator)


def dropout1d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Zeroes each channel of an (N, C, L) or (C, L) input with probability p; otherwise as `dropout`.

    Equivalent::

        keep = torch.rand(*x.shape[:-1], 1) >= p
        y = torch.where(keep, x / (1 - p), 0)

    Source: Tompson et al., "Efficient Object Localization Using Convolutional Networks" (CVPR 2015);
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout1d.html
    """
    rule = _dropout.Rule(p, leading=1 if _has_dims(input, 2) else 2)
    return _dropout_by(rule, F.dropout1d, input, p, training, inplace, generator, usual_dims=(2, 3))


def dropout2d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Zeroes each channel of an (N, C, H, W) input with probability p; otherwise as `dropout`.

    As torch does, it warns of an input with another number of dimensions and takes the first two for N and C,
    so that three are (N, C, L). Channels-last input and its gradient stay channels-last, without a copy.

    Equivalent::

        keep = torch.rand(*x.shape[:2], 1, 1) >= p
        y = torch.where(keep, x / (1 - p), 0)

    Source: Tompson et al., "Efficient Object Localization Using Convolutional Networks" (CVPR 2015);
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout2d.html
    """
    rule = _dropout.Rule(p, leading=2)
    return _dropout_by(rule, F.dropout2d, input, p, training, inplace, generator, usual_dims=(4,))


def dropout3d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Zeroes each channel of an (N, C, D, H, W) or (C, D, H, W) input with probability p; else as `dropout`.

    As torch does, it warns of an input with another number of dimensions and takes the first one for C.

    Equivalent::

        keep = torch.rand(*x.shape[:-3], 1, 1, 1) >= p
        y = torch.where(keep, x / (1 - p), 0)

    Source: Tompson et al., "Efficient Object Localization Using Convolutional Networks" (CVPR 2015);
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout3d.html
    """
    rule = _dropout.Rule(p, leading=2 if _has_dims(input, 5) else 1)
    return _dropout_by(rule, F.dropout3d, input, p, training, inplace, generator, usual_dims=(4, 5))


def feature_alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""`alpha_dropout` of whole channels: all elements of a channel of an (N, C, *) input share an outcome.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.feature_alpha_dropout.html
    """
    rule = _dropout.Rule(p, leading=2, constants="alpha")
    return _dropout_by(rule, F.feature_alpha_dropout, input, p, training, inplace, generator)


def drop_path(
    x: Tensor,
    drop_prob: float = 0.0,
    training: bool = False,
    scale_by_keep: bool = True,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Stochastic depth: zeroes each sample of an (N, *) input with probability drop_prob.

    The other samples are scaled by 1 / (1 - drop_prob), or left as they are without scale_by_keep. Mask,
    dtypes and generator are those of `dropout`; x itself is returned without training and for drop_prob = 0.
    Where the kernel does not apply (`normreg.functional.dispatch`), this is the equivalent below. Raises
    ValueError for drop_prob outside [0, 1].

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
        check_drop_prob(drop_prob)
        return _dropout.in_torch(x, rule, generator=generator)
    return _dropout.dropout(x, rule, generator=generator)


def dropout_in_torch(x: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    """torch's dropout in training, with a generator."""
    F.dropout(x, p, training=False)  # judges p
    if generator is None or p in (0, 1) or x.numel() == 0:
        return F.dropout(x, p)
    return _dropout.in_torch(x, _dropout.Rule(p), generator=generator)


def _has_dims(input: Any, dims: int) -> bool:
    return isinstance(input, Tensor) and input.dim() == dims

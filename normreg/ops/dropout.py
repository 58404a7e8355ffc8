"""The dropouts as one autograd.Function that keeps a seed, not a mask."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from normreg.kernels import dropout as kernels
from normreg.ops import gradient, seed


class Rule(NamedTuple):
    """What is decided, with which probability, and what it leads to."""

    p: float
    leading: int | None = None  # dimensions whose indices name a decision; None: every element's own
    constants: Callable = kernels.scaled


def _lies_as_needed(x, leading):
    """Whether the kernel takes x without a copy: channels-last, too, where decisions are shared."""
    if x.is_contiguous():
        return True
    if leading is None or x.dim() not in (4, 5):
        return False
    return x.is_contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def _apply(x, rule, seed_, inplace, linear):
    """The mask belongs to logical positions, so in other layouts the kernel sees a copy of x."""
    options = dict(leading=rule.leading, constants=rule.constants, linear=linear)
    if _lies_as_needed(x, rule.leading):
        return kernels.dropout(x, rule.p, seed_, out=x if inplace else None, **options)
    y = x if inplace else torch.empty_like(x)
    return y.copy_(kernels.dropout(x.contiguous(), rule.p, seed_, **options))


class DropoutFunction(torch.autograd.Function):
    @staticmethod
    def forward(x, rule, seed_, inplace, linear):
        return _apply(x, rule, seed_, inplace, linear)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.rule, ctx.seed, inplace, _ = inputs
        if inplace:
            ctx.mark_dirty(x)

    @staticmethod
    def backward(ctx, dy):
        # linear in dy: its own backward is itself under the same mask
        return DropoutFunction.apply(dy, ctx.rule, ctx.seed, False, True), None, None, None, None


def dropout(x, rule, inplace=False, generator=None):
    seed_ = seed.draw(x.device, generator)
    if gradient.wants_gradient(x):
        return DropoutFunction.apply(x, rule, seed_, inplace, False)
    y = _apply(x, rule, seed_, inplace, linear=False)
    if inplace:
        torch.autograd.graph.increment_version(y)
    return y


def in_torch(x, rule, inplace=False, generator=None):
    """torch's own dropouts, at::_dropout_impl, from the generator that they do not take.

    For a generator in the state of the default one, the result on a CPU is torch's, bit for bit.
    """
    p, keep = rule.p, 1 - rule.p
    if rule.leading is None:
        noise = torch.empty_like(x)
    else:
        noise = x.new_empty((*x.shape[: rule.leading], *(1,) * (x.dim() - rule.leading)))
    noise.bernoulli_(keep, generator=generator)
    shift = None
    if rule.constants is kernels.alpha:
        a = 1 / math.sqrt((kernels.ALPHA**2 * p + 1) * keep)
        shift = (noise - 1).mul_(-kernels.ALPHA * a).add_(-kernels.ALPHA * a * p)
        noise.mul_(a)
    elif rule.constants is kernels.scaled and keep > 0:
        noise.div_(keep)
    y = x.mul_(noise) if inplace else x * noise
    return y if shift is None else y.add_(shift)

"""Dropout as an autograd.Function that keeps a seed, not a mask."""

import torch

from normreg.kernels.dropout import dropout as dropout_kernel
from normreg.ops import gradient, seed


def _apply(x, p, seed_, inplace=False):
    """The mask belongs to logical positions, so the kernel sees x in logical order."""
    if x.is_contiguous():
        return dropout_kernel(x, p, seed_, out=x if inplace else None)
    y = x if inplace else torch.empty_like(x)
    return y.copy_(dropout_kernel(x.contiguous(), p, seed_))


class DropoutFunction(torch.autograd.Function):
    @staticmethod
    def forward(x, p, seed_, inplace):
        return _apply(x, p, seed_, inplace)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.p, ctx.seed, inplace = inputs
        if inplace:
            ctx.mark_dirty(x)

    @staticmethod
    def backward(ctx, dy):
        # dropout is linear: its backward is itself under the same mask, and so is that one's
        return DropoutFunction.apply(dy, ctx.p, ctx.seed, False), None, None, None


def dropout(x, p, inplace, generator=None):
    seed_ = seed.draw(x.device, generator)
    if gradient.wants_gradient(x):
        return DropoutFunction.apply(x, p, seed_, inplace)
    y = _apply(x, p, seed_, inplace)
    if inplace:
        torch.autograd.graph.increment_version(y)
    return y

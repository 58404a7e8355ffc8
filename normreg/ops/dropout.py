"""The dropouts as one autograd.Function and as one operator, which keep a seed, not a mask."""

import math
from typing import NamedTuple

import torch

from normreg.kernels import dropout as kernels
from normreg.ops import gradient, operator, seed

CONSTANTS = {"scaled": kernels.scaled, "unscaled": kernels.unscaled, "alpha": kernels.alpha}


class Rule(NamedTuple):
    """What is decided, with which probability, and what it leads to."""

    p: float
    leading: int | None = None  # dimensions whose indices name a decision; None: every element's own
    constants: str = "scaled"  # of CONSTANTS


def _lies_as_needed(x, leading):
    """Whether the kernel takes x without a copy: channels-last, too, where decisions are shared."""
    if x.is_contiguous():
        return True
    if leading is None or x.dim() not in (4, 5):
        return False
    return x.is_contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def _forward(x, seed_, p, leading, constants, linear, inplace=False):
    """The mask belongs to logical positions, so in other layouts the kernel sees a copy of x."""
    options = dict(leading=leading, constants=CONSTANTS[constants], linear=linear)
    if _lies_as_needed(x, leading):
        return kernels.dropout(x, p, seed_, out=x if inplace else None, **options)
    y = x if inplace else torch.empty_like(x)
    return y.copy_(kernels.dropout(x.contiguous(), p, seed_, **options))


class DropoutFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        DropoutFunction.save(ctx, inputs)
        return _forward(*inputs)

    @staticmethod
    def save(ctx, inputs, output=None):
        _, seed_, *ctx.rule, _ = inputs
        seed.save(ctx, seed_)

    @staticmethod
    def backward(ctx, dy):
        # linear in dy: its own backward is itself under the same mask
        _, seed_ = seed.saved(ctx, dy)
        if operator.traces(dy):
            dx = OPERATOR(dy, seed_, *ctx.rule, True)
        elif gradient.is_batched(dy):
            dx = dy * _forward(torch.ones(dy.shape, dtype=dy.dtype, device=dy.device), seed_, *ctx.rule, True)
        else:
            dx = DropoutFunction.apply(dy, seed_, *ctx.rule, True)
        return dx, None, None, None, None, None


class InplaceDropoutFunction(DropoutFunction):
    @staticmethod
    def forward(ctx, *inputs):
        DropoutFunction.save(ctx, inputs)
        ctx.mark_dirty(inputs[0])
        return _forward(*inputs, inplace=True)


def fake_forward(x, seed_, p, leading, constants, linear):
    return torch.empty_like(x)


OPERATOR = operator.register(
    "dropout(Tensor x, Tensor seed, float p, int? leading, str constants, bool linear) -> Tensor",
    _forward, fake_forward, DropoutFunction,
)  # fmt: skip


def dropout(x, rule, inplace=False, generator=None):
    arguments = (x, seed.draw(x.device, generator), *rule, False)
    if torch.compiler.is_compiling():
        y = OPERATOR(*arguments)
        return x.copy_(y) if inplace else y
    if gradient.wants_gradient(x):
        return (InplaceDropoutFunction if inplace else DropoutFunction).apply(*arguments)
    y = _forward(*arguments, inplace)
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
    if rule.constants == "alpha":
        a = 1 / math.sqrt((kernels.ALPHA**2 * p + 1) * keep)
        shift = (noise - 1).mul_(-kernels.ALPHA * a).add_(-kernels.ALPHA * a * p)
        noise.mul_(a)
    elif rule.constants == "scaled" and keep > 0:
        noise.div_(keep)
    y = x.mul_(noise) if inplace else x * noise
    return y if shift is None else y.add_(shift)

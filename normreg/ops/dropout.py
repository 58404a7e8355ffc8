"""The dropouts as one operation, which keeps a seed, not a mask."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from normreg.kernels import dropout as kernels
from normreg.kernels import tiling
from normreg.kernels.device.random import GROUP_BITS
from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.memory_format import is_dense
from normreg.ops import seed
from normreg.ops.operation import Operation, Seed, is_batched, wants_gradient
from normreg.ops.random import keep_mask

CONSTANTS = {"scaled": kernels.scaled, "unscaled": kernels.unscaled, "alpha": kernels.alpha}


class Rule(NamedTuple):
    """How elements are dropped: how likely, which of them together, and how kept ones are scaled."""

    p: float
    leading: int | None = None  # dimensions whose indices name a decision; None: every element's own
    constants: str = "scaled"  # of CONSTANTS


def run(
    x: Tensor, seed: Seed, p: float, leading: int | None, constants: str, linear: bool, inplace: bool = False
) -> Tensor:
    """The mask belongs to logical positions, so in other layouts the kernel sees a copy of x."""
    given = leading, CONSTANTS[constants], linear
    if is_dense(x):
        return kernels.dropout(x, p, seed, x if inplace else None, *given)
    y = x if inplace else torch.empty_like(x)
    return y.copy_(kernels.dropout(x.contiguous(), p, seed, None, *given))


def backward(dy, seed, p, leading, constants, wanted):
    """dx, which is linear in dy: its own backward is itself under the same mask."""
    if is_batched(dy):
        ones = torch.ones(dy.shape, dtype=dy.dtype, device=dy.device)
        return (dy * run(ones, seed, p, leading, constants, True),)
    return (under_mask(dy, seed, p, leading, constants, True),)


def decomposed(x, seed, p, leading, constants, linear):
    shape, bits = x.shape, tiling.elements.dropout_bits(x.dtype, p)
    if leading is not None and math.prod(x.shape[leading:]) != 1:
        shape, bits = (*x.shape[:leading], *[1] * (x.dim() - leading)), GROUP_BITS
    threshold, scale, shift, dropped = kernels.layer_constants(p, bits, CONSTANTS[constants], linear)
    y = x.to(compute_dtype(x.dtype)) * scale
    y = y - shift if shift else y
    return torch.where(keep_mask(seed, 1, math.prod(shape), threshold, bits).view(shape), y, dropped)


under_mask = Operation(
    "dropout",
    run,
    lambda x: torch.empty_like(x),
    ("y",),
    backward,
    gradients=1,
    decomposition=decomposed,
)


class InplaceDropoutFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *rest):
        under_mask.save(ctx, (x, *rest), x)
        ctx.mark_dirty(x)
        return run(x, *rest, inplace=True)

    backward = staticmethod(under_mask.function.backward)


def dropout(x, rule, inplace=False, generator=None):
    inputs = (x, seed.draw(x.device, generator), *rule, False)
    if not inplace:
        return under_mask(*inputs)
    if torch.compiler.is_compiling():
        return x.copy_(under_mask(*inputs))
    if wants_gradient((x,)):
        return InplaceDropoutFunction.apply(*inputs)
    y = run(*inputs, inplace=True)
    torch.autograd.graph.increment_version(y)  # a kernel's store does not count as a version
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

"""The L2 penalty as an autograd.Function of all parameters. Its formulas are in `normreg.kernels.l2_penalty`.

There is no operator of it: under torch.compile it consists of torch's operations, which inductor fuses.
"""

import torch

from normreg.kernels import l2_penalty as kernels
from normreg.kernels.dtypes import compute_dtype
from normreg.ops import gradient


class L2PenaltyFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight_decay, *parameters):
        ctx.weight_decay = weight_decay
        ctx.save_for_backward(*parameters)
        return kernels.l2_penalty_forward(parameters, weight_decay)

    @staticmethod
    def backward(ctx, dy):
        wanted = ctx.needs_input_grad[1:]
        parameters = [w for w, want in zip(ctx.saved_tensors, wanted) if want]
        if gradient.wants_formula(dy) or type(dy) is not torch.Tensor:
            scale = ctx.weight_decay * dy
            grads = [(w.to(compute_dtype(w.dtype)) * scale).to(w.dtype) for w in parameters]
        else:
            grads = kernels.l2_penalty_backward(dy, parameters, ctx.weight_decay)
        grads = iter(grads)
        return None, *(next(grads) if want else None for want in wanted)


def l2_penalty(parameters, weight_decay):
    if gradient.wants_gradient(*parameters):
        return L2PenaltyFunction.apply(weight_decay, *parameters)
    return kernels.l2_penalty_forward(parameters, weight_decay)


def in_torch(parameters, weight_decay):
    """Of torch's operations alone, which have derivatives of every order and kind."""
    wide = [w.to(compute_dtype(w.dtype)) for w in parameters]
    squares = torch._foreach_mul(wide, wide)
    total = torch.stack([square.sum(dtype=torch.float64) for square in squares]).sum()
    return (total * (weight_decay / 2)).to(kernels.sum_dtype(parameters))

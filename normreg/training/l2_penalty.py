"""`l2_penalty`: torch's foreach operators, which read every element once in each direction."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from normreg.kernels.dtypes import FLOATING, compute_dtype
from normreg.ops.operation import PLAIN, wants_formula
from normreg.training.checks import Parameters, check_weight_decay, checked_parameters


def _by_dtype(tensors: Sequence[torch.Tensor]) -> dict[torch.dtype, list[torch.Tensor]]:
    """A list for each dtype, because foreach operators take a list of several dtypes tensor by tensor."""
    dtypes = dict.fromkeys(w.dtype for w in tensors)
    return {dtype: [w for w in tensors if w.dtype == dtype] for dtype in dtypes}


def _scaled(tensors: list[torch.Tensor], scale: torch.Tensor, formula: bool) -> Sequence[torch.Tensor]:
    """w * scale of tensors of one dtype; those of 16 bits times float32 in one pass, rounded once."""
    scale = scale.to(compute_dtype(tensors[0].dtype))
    if formula:  # which has derivatives itself
        return [(w.to(scale.dtype) * scale).to(w.dtype) for w in tensors]
    if scale.dtype == tensors[0].dtype:
        return torch._foreach_mul(tensors, scale)
    return [torch.mul(w, scale.reshape([1] * w.dim()), out=torch.empty_like(w)) for w in tensors]


def _penalty(tensors: Sequence[torch.Tensor], weight_decay: float, in_foreach: bool) -> torch.Tensor:
    """The penalty by norms, or in operators that compilers fuse and that have derivatives of every kind."""
    if in_foreach:
        lists = _by_dtype(tensors).values()
        norms = [norm for ws in lists for norm in torch._foreach_norm(ws, 2, dtype=torch.float64)]
        total = torch.stack(norms).square().sum()
    else:
        wide = [w.to(compute_dtype(w.dtype)) for w in tensors]
        total = torch.stack([w_2.sum(dtype=torch.float64) for w_2 in torch._foreach_mul(wide, wide)]).sum()
    dtype = torch.float64 if any(w.dtype == torch.float64 for w in tensors) else torch.float32
    return (total * (weight_decay / 2)).to(dtype)


class L2PenaltyFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_decay: float, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.weight_decay = weight_decay
        ctx.save_for_backward(*tensors)
        # a CPU's norms add one by one: 2e-14 off for 131077 float64 elements, whose sum is off by 1e-16
        return _penalty(tensors, weight_decay, in_foreach=tensors[0].is_cuda)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad[1:]
        formula, scale = wants_formula(dy) or type(dy) is not torch.Tensor, ctx.weight_decay * dy.double()
        lists = _by_dtype([w for w, want in zip(tensors, wanted) if want])
        dw = {dtype: iter(_scaled(ws, scale, formula)) for dtype, ws in lists.items()}
        return None, *(next(dw[w.dtype]) if want else None for w, want in zip(tensors, wanted))


def _has_foreach(tensors: list[torch.Tensor]) -> bool:
    """Whether no transform, compiler or tracer is at work, and no tensor is of an unusual kind."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or forward_ad._current_level >= 0:
        return False
    usual = all(type(w) in PLAIN and w.dtype in FLOATING and w.layout is torch.strided for w in tensors)
    return usual and not any(w.is_nested for w in tensors) and not torch._C._are_functorch_transforms_active()


def l2_penalty(parameters: Parameters, weight_decay: float) -> torch.Tensor:
    r"""Half of weight_decay times the sum of the squares of all parameters: a term to add to a loss.

    y = weight_decay / 2 * sum_i sum w_i^2, dw_i = weight_decay dy w_i.

    Args:
        parameters: an iterable of tensors or of (name, tensor) pairs, such as `model.parameters()` or
            `model.named_parameters()`, of any shapes, layouts and floating-point dtypes, on one device; or
            one tensor, as `torch.nn.utils.clip_grad_norm_` takes it. A tensor given twice counts twice.
        weight_decay: a finite number of at least 0.

    Returns a scalar: float32, or float64 where a parameter is. Sums are in float64 whatever the dtypes, and
    the same at every call. Gradients have the dtypes and layouts of the parameters, or are contiguous where
    the elements of a parameter have gaps between them or share memory.

    Under `torch.optim.SGD` and `Adam` the step is that of the optimizer's own `weight_decay`, which adds the
    same gradient; not under `AdamW`, which shrinks each weight by lr * weight_decay beside its step. Gradient
    clipping sees the penalty's gradient, but not the optimizer's `weight_decay`.

    Raises TypeError for what is no number, tensor or floating-point dtype, and ValueError for a negative or
    non-finite weight_decay, no parameters, and parameters on several devices; the error names the parameter.

    Equivalent::

        y = weight_decay / 2 * sum(w.square().sum() for w in parameters)

    Source: Krogh and Hertz, "A Simple Weight Decay Can Improve Generalization" (1991); Loshchilov and Hutter,
    "Decoupled Weight Decay Regularization" (2019), arXiv 1711.05101, on Adam
    """
    check_weight_decay(weight_decay)
    tensors = checked_parameters(parameters)
    if _has_foreach(tensors):
        return L2PenaltyFunction.apply(weight_decay, *tensors)
    return _penalty(tensors, weight_decay, in_foreach=False)

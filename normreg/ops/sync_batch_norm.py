"""BatchNorm over all ranks of a process group. The formulas are in `normreg.kernels.batch_norm.synchronized`.

Forward and backward each have one collective.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from normreg.kernels import batch_norm as batch_norm_kernels
from normreg.kernels.batch_norm import synchronized as kernels
from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.memory_format import channel_values, dense, flags_of
from normreg.ops import batch_norm, collectives
from normreg.ops import sync_batch_norm_torch as in_torch
from normreg.ops.activations import DZ
from normreg.ops.batch_norm import z_of
from normreg.ops.batch_norm_act import KEEP, fake_backward, fake_bits
from normreg.ops.collectives import AllReduceFunction
from normreg.ops.operation import Operation, Operator, is_batched


def run(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str | None,
    negative_slope: float,
    eps: float,
    group: str,
    ranks: int,
    by_kernels: bool,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    steps = kernels if by_kernels else in_torch
    x = dense(x)
    gathered = collectives.all_gather(steps.pack(x, num_batches_tracked), group, ranks)
    fused = batch_norm_kernels.fused(x, act, negative_slope, residual, save and by_kernels)
    running = running_mean, running_var, num_batches_tracked
    result = steps.normalize(x, gathered, weight, bias, *running, momentum, eps, fused)
    if num_batches_tracked is not None and by_kernels:  # a kernel's store does not count as a version
        torch.autograd.graph.increment_version(num_batches_tracked)
    return *result, fused.bits


def run_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    bits: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: Tensor,
    act: str | None,
    negative_slope: float,
    eps: float,
    group: str,
    by_kernels: bool,
    parameter_dtype: torch.dtype,
    wanted: Sequence[bool],
    decomposed: bool = False,
) -> tuple[Tensor | None, ...]:
    """decomposed: nothing is changed in place."""
    steps = kernels if by_kernels else in_torch
    fused = batch_norm_kernels.Fused(act, negative_slope, residual, bits)
    statistics = mean, var
    sums, dweight, dbias, dresidual = steps.backward_pack(
        dy, x, weight, bias, *statistics, count, eps, parameter_dtype, wanted, fused
    )
    dx = None
    if sums is not None:
        reduce = collectives.all_reduced if decomposed else collectives.all_reduce
        sums = reduce(sums, group)
        dx = steps.backward(dy, x, weight, bias, *statistics, sums, dresidual, eps, fused)
    return dx, dweight, dbias, dresidual


@functools.wraps(run)
def decomposed(*values):
    x, weight, bias, residual, act, _, eps, group, ranks, _, *others = values
    y, mean, var, count, _ = run(*values[:7], group, ranks, False, *others)
    bits = None
    if batch_norm_kernels.keeps_bits(act, residual):
        bits = in_torch.bits(x, weight, bias, residual, mean, var, act, eps)
    return y, mean, var, count, bits


@functools.wraps(run_backward)
def decomposed_backward(*values):
    *others, _, parameter_dtype, wanted = values
    return run_backward(*others, False, parameter_dtype, wanted, decomposed=True)


def fake(x, residual, act, by_kernels, save):
    mean, count = channel_values(x), x.new_empty(1, dtype=torch.float64)
    statistics = mean, torch.empty_like(mean, dtype=compute_dtype(x.dtype)), count
    return torch.empty_like(dense(x)), *statistics, fake_bits(x, act, residual, save and by_kernels)


@functools.wraps(run_backward)
def gradients(dy, *values):
    *values, (*wanted, want_dresidual) = values
    *_, act, _, _, _, _, _ = values
    *found, dresidual = backward(dy, *values, (*wanted, want_dresidual and act is not None))
    return *found, dy if want_dresidual and act is None else dresidual


def formula(dy, x, weight, bias, residual, bits, count, act, negative_slope, eps, group, wanted):
    """The gradients as differentiable torch operations, with two collectives more."""
    if is_batched(dy):
        raise RuntimeError(
            "expected one incoming gradient, got a batch of them (is_grads_batched=True or torch.func): "
            "ranks would exchange sums for each; call backward once for each of them"
        )
    dims, _ = batch_norm.over_channels(x)
    dtype = compute_dtype(x.dtype)

    def average(t):
        return AllReduceFunction.apply(t.sum(dims, keepdim=True), group) / count.to(dtype)

    want_dx, want_dweight, want_dbias, want_dresidual = wanted
    deviation = x.to(dtype) - average(x.to(dtype))
    x_hat = deviation * (average(deviation.square()) + eps).rsqrt()
    y = z_of(x_hat, weight, None, None)
    dz = dy.to(dtype)
    if act is not None:
        z = flags_of(bits, x).to(dtype) if bits is not None else z_of(y, None, bias, residual)
        derivative = DZ[act]
        dz = derivative(dz, z, negative_slope)
    sources = [t for t, want in ((x, want_dx), (weight, want_dweight)) if want]
    found = iter(torch.autograd.grad(y, sources, dz, create_graph=True) if sources else ())
    dx, dweight = (next(found) if want else None for want in (want_dx, want_dweight))
    return dx, dweight, dz.sum(dims) if want_dbias else None, dz.to(dy.dtype) if want_dresidual else None


backward = Operator(
    "sync_batch_norm_backward",
    run_backward,
    fake_backward,
    ("dx", "dweight", "dbias", "dresidual"),
    everywhere=True,
    decomposition=decomposed_backward,
)
# by_kernels: whether these take the tensors; group: the name of the process group, of `ranks` ranks
sync_batch_norm = Operation(
    "sync_batch_norm",
    run,
    fake,
    ("y", "mean", "var", "count", "bits"),
    gradients,
    formula,
    gradients=4,
    dtypes=batch_norm.DTYPES,
    keep=KEEP,
    mutates=batch_norm.RUNNING,
    everywhere=True,
    decomposition=decomposed,
)

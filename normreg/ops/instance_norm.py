"""InstanceNorm: GroupNorm of one channel a group, and running statistics that are averages over the batch."""

import math

import torch

from normreg.kernels.group_norm import instance_norm as kernels
from normreg.ops.batch_norm import moved
from normreg.ops.group_norm import group_norm, normalized
from normreg.ops.operation import Operator


def decomposed(statistics, running_mean, running_var, spatial, momentum):
    high, low, var = statistics.double().mean(0).unbind(-1)
    running_mean.copy_(moved(running_mean, high + low, momentum))
    running_var.copy_(moved(running_var, var * spatial / (spatial - 1), momentum))


update_running = Operator(
    "instance_norm_update_running",
    kernels.instance_norm_update_running,
    lambda: None,
    (),
    mutates=("running_mean", "running_var"),
    decomposition=decomposed,
)


def instance_norm(x, weight, bias, running_mean, running_var, momentum, eps):
    channels = x.shape[1]
    if running_mean is None:
        return group_norm(x, weight, bias, channels, eps, x.dtype)
    y, statistics = normalized(x, weight, bias, channels, eps, x.dtype, True)
    update_running(statistics, running_mean, running_var, math.prod(x.shape[2:]), momentum)
    if not torch.compiler.is_compiling():  # a kernel's stores do not count as a version
        torch.autograd.graph.increment_version((running_mean, running_var))
    return y

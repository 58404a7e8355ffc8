"""InstanceNorm: GroupNorm of one channel a group, and running statistics that are averages over the batch."""

import torch

from normreg.kernels.group_norm.instance_norm import instance_norm_update_running
from normreg.ops import operator
from normreg.ops.group_norm import group_norm, normalized

OPERATOR_UPDATE_RUNNING = operator.register(
    "instance_norm_update_running(Tensor x, Tensor mean, Tensor var, Tensor(a!) running_mean, "
    "Tensor(b!) running_var, float momentum) -> ()",
    instance_norm_update_running, lambda *_: None,
)  # fmt: skip


def instance_norm(x, weight, bias, running_mean, running_var, momentum, eps):
    channels = x.shape[1]
    if running_mean is None:
        return group_norm(x, weight, bias, channels, eps, x.dtype)
    y, mean, var = normalized(x, weight, bias, channels, eps, x.dtype, save_statistics=True)
    running = (running_mean, running_var)
    if torch.compiler.is_compiling():
        OPERATOR_UPDATE_RUNNING(x.detach(), mean, var, *running, momentum)
    else:
        instance_norm_update_running(x.detach(), mean, var, *running, momentum)
        torch.autograd.graph.increment_version(running)  # which the kernel's stores do not do
    return y

"""`normreg.kernels.batch_norm.synchronized` in torch's operations, for tensors that no kernel takes.

Its docstring has the formulas. Functions are called like those of the same names there, and send the same.
"""

import torch

from normreg.kernels.batch_norm.synchronized import EXTRA
from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.memory_format import bits_of, dense, flags_of
from normreg.ops.activations import DZ, activation_in_torch, is_steep
from normreg.ops.batch_norm import moved, over_channels, pair


def _deviation(x, mean):
    """x - mean, without rounding the float64 mean first, in the dtype computed in."""
    _, per_channel = over_channels(x)
    dtype = compute_dtype(x.dtype)
    high, low = (part.view(per_channel) for part in pair(mean, dtype))
    return (x.to(dtype) - high).sub_(low)


def _per_channel(value, like):
    return value.to(like.dtype).view(over_channels(like)[1])


def _like(x, value):
    """The value in x's dtype and in the memory format of its result."""
    return torch.empty_like(dense(x)).copy_(value)


def _z(x, weight, bias, mean, var, residual, eps):
    """The activation's input, and x - mean."""
    deviation = _deviation(x, mean)
    scale = (var.double() + eps).rsqrt()
    z = deviation * _per_channel(scale if weight is None else scale * weight.double(), deviation)
    z = z if bias is None else z + _per_channel(bias, z)
    return z if residual is None else z + residual, deviation


def pack(x, num_batches_tracked):
    channels, dtype = x.shape[1], compute_dtype(x.dtype)
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    if x.numel() == 0:
        return x.new_zeros(3 * channels + EXTRA, dtype=dtype)
    dims, per_channel = over_channels(x)
    shift = x.movedim(1, 0).flatten(1)[:, 0].double()
    deviation = _deviation(x, shift)
    mean = deviation.mean(dims)
    m2 = deviation.sub_(mean.view(per_channel)).square_().sum(dims)
    count = torch.full((1,), x.numel() // channels, dtype=torch.float64, device=x.device)
    return torch.cat([*pair(shift + mean.double(), dtype), m2, *pair(count, dtype)])


def merge(gathered, channels):
    """Count, mean and m2 of all ranks, merged one rank after the other."""
    gathered = gathered.view(-1, 3 * channels + EXTRA).double()
    means = gathered[:, :channels] + gathered[:, channels : 2 * channels]
    m2s = gathered[:, 2 * channels : 3 * channels]
    counts = gathered[:, 3 * channels :].sum(1, keepdim=True)
    count, mean, m2 = counts[0], means[0], m2s[0]
    for count_b, mean_b, m2_b in zip(counts[1:], means[1:], m2s[1:]):
        total = count + count_b
        share, delta = count_b / total.clamp(min=1), mean_b - mean
        mean, m2, count = mean + delta * share, m2 + m2_b + delta * delta * (count * share), total
    return count, mean, m2


def normalize(
    x, gathered, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps, fused
):
    count, mean, m2 = merge(gathered, x.shape[1])
    at_least_one = count.clamp(min=1)
    if running_mean is not None:
        factor = 1 / num_batches_tracked.double() if momentum is None else momentum
        for running, value in ((running_mean, mean), (running_var, m2 / (count - 1))):
            running.copy_(torch.where(count > 0, moved(running, value, factor), running.double()))
    var = (m2 / at_least_one).to(compute_dtype(x.dtype))
    z, _ = _z(x, weight, bias, mean, var, fused.residual, eps)
    y = activation_in_torch(z, fused.act, fused.negative_slope)
    return _like(x, y), mean, var, at_least_one


def bits(x, weight, bias, residual, mean, var, act, eps):
    """What stands for the activation's input, as the kernels keep it."""
    z, _ = _z(x, weight, bias, mean, var, residual, eps)
    return bits_of(is_steep(z, act), x)


def _dz(dy, x, weight, bias, mean, var, eps, fused):
    """dz, and x - mean."""
    z, deviation = _z(x, weight, bias, mean, var, fused.residual, eps)
    dz = dy.to(deviation.dtype)
    if fused.act is not None:
        z = z if fused.bits is None else flags_of(fused.bits, x).to(dz.dtype)
        derivative = DZ[fused.act]
        dz = derivative(dz, z, fused.negative_slope)
    return dz, deviation


def backward_pack(dy, x, weight, bias, mean, var, count, eps, parameter_dtype, wanted, fused):
    want_dx, want_dweight, want_dbias, want_dresidual = wanted
    dz, deviation = _dz(dy, x, weight, bias, mean, var, eps, fused)
    dims, _ = over_channels(x)
    sums = torch.stack([dz.sum(dims), (dz * deviation).sum(dims)]).double()
    packed = (sums / count).to(dz.dtype) if want_dx else None
    dbias = sums[0].to(parameter_dtype) if want_dbias else None
    dweight = (sums[1] * (var.double() + eps).rsqrt()).to(parameter_dtype) if want_dweight else None
    return packed, dweight, dbias, _like(x, dz) if want_dresidual else None


def backward(dy, x, weight, bias, mean, var, sums, dresidual, eps, fused):
    dz, deviation = _dz(dy, x, weight, bias, mean, var, eps, fused)
    rstd = (var.double() + eps).rsqrt()
    s1, s2 = sums.double()
    dx = dz - deviation * _per_channel(s2 * rstd.square(), dz) - _per_channel(s1, dz)
    dx = dx * _per_channel(rstd if weight is None else rstd * weight.double(), dz)
    return _like(x, dx)

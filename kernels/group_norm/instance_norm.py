"""Instance normalisation of each channel of each sample over its spatial positions.

That is `group_norm` with one channel a group, and its kernels. In training the running statistics become

    running_mean = (1 - momentum) running_mean + momentum (mean over samples of mean)
    running_var = (1 - momentum) running_var + momentum (mean over samples of var n / (n - 1))

with n positions. Inference from running statistics is `batch_norm`'s.
"""

import triton
import triton.language as tl

from normreg.kernels import launch, tiling
from normreg.kernels.device.channels import update_running


@triton.jit(do_not_specialize=["samples", "channels", "spatial", "stride_sample", "stride_channel"])
def instance_norm_running_kernel(
    x_ptr,                                # [samples, channels, spatial]
    mean_ptr, var_ptr,                    # [samples, channels]; mean relative to the first position of x
    running_mean_ptr, running_var_ptr,    # [channels]
    samples, channels, spatial,
    stride_sample, stride_channel,
    momentum: tl.float64,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channel_mask = channel < channels
    mean = tl.zeros([BLOCK_SAMPLES, BLOCK_CHANNELS], tl.float64)
    var = tl.zeros([BLOCK_SAMPLES, BLOCK_CHANNELS], tl.float64)
    for first in range(0, samples, BLOCK_SAMPLES):
        sample = first + tl.arange(0, BLOCK_SAMPLES).to(tl.int64)[:, None]
        mask = (sample < samples) & channel_mask[None, :]
        offsets = sample * channels + channel[None, :]
        shift_offsets = sample * stride_sample + channel.to(tl.int64)[None, :] * stride_channel
        mean += tl.load(x_ptr + shift_offsets, mask=mask, other=0.0).to(tl.float64)
        mean += tl.load(mean_ptr + offsets, mask=mask, other=0.0).to(tl.float64)
        var += tl.load(var_ptr + offsets, mask=mask, other=0.0).to(tl.float64)

    factor = tl.full([], momentum, tl.float64)
    unbiased = tl.sum(var, 0) / samples * (spatial.to(tl.float64) / (spatial - 1))
    update_running(running_mean_ptr, tl.sum(mean, 0) / samples, factor, channel, channel_mask)
    update_running(running_var_ptr, unbiased, factor, channel, channel_mask)


@launch.planned
def running_launch(samples, channels, spatial, stride_sample, stride_channel, momentum, device):
    tile = tiling.groups.instance_norm_running_tile()
    return launch.Launch(
        instance_norm_running_kernel, (triton.cdiv(channels, tile.cols),), device,
        samples, channels, spatial, stride_sample, stride_channel, momentum,
        BLOCK_SAMPLES=tile.rows, BLOCK_CHANNELS=tile.cols, num_warps=tile.num_warps,
    )  # fmt: skip


def instance_norm_update_running(x, mean, var, running_mean, running_var, momentum):
    """Moves the running statistics, in place, towards those of x that `group_norm_forward` returned."""
    sizes = (x.shape[0], x.shape[1], x.shape[2:].numel(), x.stride(0), x.stride(1))
    plan = running_launch(*sizes, momentum, x.device)
    launch.launch(plan, x, mean, var, running_mean, running_var)

"""Instance normalisation of each channel of each sample over its spatial positions.

Its kernels are those of `group_norm` with one channel a group. In training the running statistics become

    running_mean = (1 - momentum) running_mean + momentum (mean over samples of mean)
    running_var = (1 - momentum) running_var + momentum (mean over samples of var n / (n - 1))

where a channel has n positions. Inference from running statistics is `batch_norm`'s.
"""

import torch
import triton
import triton.language as tl

from normreg.kernels import launch, tiling
from normreg.kernels.device.per_channel import update_running
from normreg.kernels.device.rows import load_mean, load_spread
from normreg.kernels.device.statistics import Mean


@triton.jit(do_not_specialize=["samples", "channels", "spatial"])
def instance_norm_running_kernel(
    statistics_ptr,  # [samples, channels, 3]
    running_mean_ptr,  # [channels]
    running_var_ptr,
    samples,
    channels,
    spatial,
    momentum: tl.float64,
    BLOCK: tl.constexpr,  # samples, channels
):
    SAMPLES: tl.constexpr = BLOCK[0]
    CHANNELS: tl.constexpr = BLOCK[1]
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < channels
    mean = tl.zeros([SAMPLES, CHANNELS], tl.float64)
    var = tl.zeros([SAMPLES, CHANNELS], tl.float64)
    for first in range(0, samples, SAMPLES):
        sample = first + tl.arange(0, SAMPLES).to(tl.int64)[:, None]
        mask = (sample < samples) & channel_mask[None, :]
        of_sample = load_mean(statistics_ptr, sample * channels + channel[None, :], mask)
        var_of_sample = load_spread(statistics_ptr, sample * channels + channel[None, :], mask)
        mean += of_sample.high.to(tl.float64) + of_sample.low.to(tl.float64)
        var += var_of_sample.to(tl.float64)

    factor = tl.full([], momentum, tl.float64)
    unbiased = tl.sum(var, 0) / samples * (spatial.to(tl.float64) / (spatial - 1))
    mean = tl.sum(mean, 0) / samples
    update_running(running_mean_ptr, Mean(mean, tl.zeros_like(mean)), factor, channel, channel_mask)
    update_running(running_var_ptr, Mean(unbiased, tl.zeros_like(mean)), factor, channel, channel_mask)


@launch.kept
def running_launch(
    samples: int, channels: int, spatial: int, momentum: float, device: torch.device
) -> launch.Launch:
    tile = tiling.groups.instance_norm_running_tile()
    grid = (triton.cdiv(channels, tile.cols),)
    numbers = samples, channels, spatial, momentum
    block = tile.rows, tile.cols
    return launch.Launch(
        instance_norm_running_kernel, grid, device, *numbers, BLOCK=block, num_warps=tile.num_warps
    )


def instance_norm_update_running(
    statistics: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    spatial: int,
    momentum: float,
) -> None:
    """Moves the running statistics, in place, towards those that `group_norm_forward` returned."""
    samples, channels, _ = statistics.shape
    call = running_launch(samples, channels, spatial, momentum, statistics.device)
    launch.launch(call, statistics, running_mean, running_var)

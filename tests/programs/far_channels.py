"""Channels and groups beyond 2^31 elements: BatchNorm, GroupNorm, InstanceNorm."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from normreg.kernels import batch_norm
from normreg.kernels.batch_norm import splits
from normreg.kernels.device.channels import Elements, ElementsBackward, PerChannel, PerChannelBackward
from normreg.kernels.group_norm import instance_norm, tile
from normreg.kernels.group_norm import splits as group_norm_splits
from normreg.kernels.group_norm.splits import PerGroup
from normreg.kernels.tiling.channels import ChannelTile
from programs.far import check, reserved, run_program

TILED = dict(TILE=ChannelTile(1, 2, 512, num_warps=4, vector=8))
ALONE = TILED | dict(ACT=None)
PLANES = 2**21 + 1, 2, 512  # samples, channels, spatial
# two splits, of which the second is the last sample
PLANE_SIZES = PLANES[0], PLANES[1], PLANES[2] // 8, PLANES[0], PLANES[0] - 1
SECOND = (0, 1, 0), (1, 2, 1)
MIRRORED = (0, 0, 0), (1, 2, 1)  # the same of a second launch, which is in reverse order


def planes():
    """x, of which the last sample is there, y, and statistics."""
    x, y = reserved(*PLANES), reserved(*PLANES)
    x[-1] = torch.randn(PLANES[1:])
    x[0, :, 0] = 0  # the shift
    return x, y, torch.randn(2), torch.rand(2) + 0.5


def per_channel(t):
    return t.float().view(2, 1)


def batch_norm_statistics():
    x, *_ = planes()
    partial = torch.zeros(4, 2, 2)
    kernel = splits.batch_norm_statistics_kernel
    run_program(kernel, *SECOND, x, partial, None, *PLANE_SIZES, **TILED)
    check(partial[0, 1], torch.tensor([512.0, 512.0]))
    check(partial[1, 1] + partial[2, 1], x[-1].float().mean(1))
    check(partial[3, 1] / 512, x[-1].float().var(1, correction=0))


def batch_norm_normalize():
    x, y, mean, var = planes()
    partial = torch.stack([torch.full((2,), 8.0), mean, 0 * mean, 8 * var])[:, None].contiguous()
    run_program(
        splits.batch_norm_normalize_kernel,
        *MIRRORED,
        *(*Elements(x, y), partial, *PerChannel()),
        *PLANE_SIZES,
        *(1, 8, 0.1, 1e-5, 0.0),
        **ALONE,
    )
    check(y[-1], (x[-1] - per_channel(mean)) / per_channel(var + 1e-5).sqrt())


def batch_norm_inference():
    x, y, mean, var = planes()
    residual = reserved(*PLANES)
    bits = reserved(*PLANES[:2], PLANES[2] // 8, dtype=torch.int8)
    residual[-1] = torch.randn(PLANES[1:])
    run_program(
        batch_norm.batch_norm_inference_kernel,
        *SECOND,
        *(*Elements(x, y, residual=residual, bits=bits), *PerChannel(running_mean=mean, running_var=var)),
        *PLANE_SIZES,
        *(1e-5, 0.0),
        ACT="relu",
        **TILED,
    )
    z = (x[-1] - per_channel(mean)) / per_channel(var + 1e-5).sqrt() + residual[-1]
    check(y[-1], z.relu())
    check(bits[-1, :, 0] & 1, z[:, 0] > 0)


def batch_norm_backward():
    x, y, mean, var = planes()
    dy = reserved(*PLANES)
    dy[-1] = torch.randn(PLANES[1:])
    rstd = (var + 1e-5).rsqrt()
    x_hat = (x[-1] - per_channel(mean)) * per_channel(rstd)
    partial = torch.zeros(2, 2, 2, dtype=torch.float64)
    statistics = PerChannelBackward(None, None, mean.double(), var)
    run_program(
        splits.batch_norm_backward_sums_kernel,
        *SECOND,
        *(*ElementsBackward(x, dy), *statistics, partial),
        *PLANE_SIZES,
        *(1e-5, 0.0),
        **ALONE,
    )
    check(partial[0, 1], dy[-1].float().sum(1))
    check(partial[1, 1] * rstd, (dy[-1] * x_hat).sum(1))
    sums = torch.tensor([[[3.0, 5.0]], [[7.0, 11.0]]], dtype=torch.float64)
    run_program(
        splits.batch_norm_backward_kernel,
        *MIRRORED,
        *(*ElementsBackward(x, dy, y), sums, *statistics),
        *PLANE_SIZES,
        *(1, 10, 1e-5, 0.0),
        **ALONE,
    )
    c1, c2 = per_channel(sums[1, 0] * rstd) / 10, per_channel(sums[0, 0]) / 10
    check(y[-1], (dy[-1] - x_hat * c1 - c2) * per_channel(rstd))


def groups():
    """Two groups of two channels a sample, of which the last sample is there."""
    samples, channels, spatial = 2**20 + 1, 4, 512
    x, y, dy = (reserved(samples, channels, spatial) for _ in range(3))
    x[-1], dy[-1] = torch.randn(2, channels, spatial)
    weight, bias = torch.randn(2, channels).half()
    last = x[-1:].float().requires_grad_()
    expected = F.group_norm(last, 2, weight.float(), bias.float())
    (dx,) = torch.autograd.grad(expected, last, dy[-1:].float())
    in_groups = last.detach().view(2, -1)
    statistics = reserved(samples, 2, 3, dtype=torch.float32)
    statistics[-1, :, 0] = in_groups.mean(1)
    statistics[-1, :, 2] = in_groups.var(1, correction=0)
    rows = samples * channels  # of which the last two are the last group
    return SimpleNamespace(
        x=x,
        y=y,
        dy=dy,
        weight=weight,
        bias=bias,
        statistics=statistics,
        expected=expected.detach(),
        dx=dx,
        samples=samples,
        in_groups=in_groups,
        sizes=(samples, 2, 2, spatial // 8),
        rows=rows,
        row_sizes=(1, rows, spatial // 8, 1, 1),
        last_rows=((rows // 2 - 1, 0, 0), (rows // 2, 1, 1)),
    )


def group_norm_forward():
    g = groups()
    run_program(
        tile.group_norm_forward_kernel,
        (2 * g.samples - 1, 0, 0),
        (2 * g.samples, 1, 1),
        *(g.x, g.y, g.weight, g.bias, g.statistics),
        *g.sizes,
        *(1e-5, 0.0),
        **ALONE,
    )
    check(g.y[-1, 2:], g.expected[0, 2:])


def group_norm_channels_last():
    """The last sample of a tile, and of splits, whose programs take all four channels."""
    g = groups()
    x, y = (t.view(g.samples, 512, 4) for t in (g.x, g.y))
    x[-1] = x[-1].view(4, 512).t().clone()
    constants = dict(TILE=ChannelTile(1, 2, 512, num_warps=4, vector=2, channels_last=True), ACT=None)
    run_program(
        tile.group_norm_forward_kernel,
        (2 * g.samples - 1, 0, 0),
        (2 * g.samples, 1, 1),
        *(x, y, g.weight, g.bias, None, g.samples, 2, 1, 512, 1e-5, 0.0),
        **constants,
    )
    check(y[-1, :, 2:].t(), g.expected[0, 2:])
    constants["TILE"] = constants["TILE"]._replace(channels=4, vector=4)
    run_program(
        group_norm_splits.group_norm_normalize_kernel,
        (g.samples - 1, 0, 0),
        (g.samples, 1, 1),
        *(*Elements(x, y), *PerGroup(g.statistics), *PerChannel(g.weight, g.bias)),
        *(g.samples, 1, 512, 1, 1, 1, 2, 4, 1e-5, 0.0),
        **constants,
    )
    check(y[-1].t(), g.expected[0])


def group_norm_backward():
    g = groups()
    run_program(
        tile.group_norm_backward_kernel,
        (1, g.samples - 1, 0),
        (2, g.samples, 1),
        *(g.dy, g.x, g.y, g.weight, None, g.statistics, None, None),
        *g.sizes,
        *(1e-5, 0.0),
        **ALONE,
    )
    check(g.y[-1, 2:], g.dx[0, 2:])


def group_norm_split_forward():
    g = groups()
    partial = torch.zeros(4, 1, g.samples * 2)
    partial[0] = 1024
    partial[1, 0, -1], partial[3, 0, -1] = g.in_groups.mean(1)[1], 1024 * g.statistics[-1, 1, 2]
    run_program(
        group_norm_splits.group_norm_normalize_kernel,
        *g.last_rows,
        *(*Elements(g.x, g.y), *PerGroup(g.statistics, partial=partial), *PerChannel(g.weight, g.bias)),
        *g.row_sizes,
        *(1, 2, 4, 1e-5, 0.0),
        **ALONE,
    )
    check(g.y[-1, 2:], g.expected[0, 2:])


def group_norm_split_backward():
    g = groups()
    partial = torch.zeros(2, 1, g.rows, dtype=torch.float64)
    run_program(
        group_norm_splits.group_norm_backward_sums_kernel,
        *g.last_rows,
        *(*ElementsBackward(g.x, g.dy), *PerChannel(), g.statistics, partial),
        *g.row_sizes,
        *(2, 4, 1e-5, 0.0),
        **ALONE,
    )
    x_hat = (g.in_groups[1] - g.in_groups[1].mean()) * (g.statistics[-1, 1, 2] + 1e-5).rsqrt()
    check(partial[0, 0, -2:], g.dy[-1, 2:].float().sum(1))
    check(partial[1, 0, -2:], (g.dy[-1, 2:] * x_hat.view(2, -1)).sum(1))
    c1, c2 = (torch.zeros(g.samples * 2) for _ in range(2))
    wdy = (g.weight[2:, None] * g.dy[-1, 2:]).float().flatten()
    c1[-1], c2[-1] = (x_hat * wdy).mean(), wdy.mean()
    run_program(
        group_norm_splits.group_norm_backward_input_kernel,
        *g.last_rows,
        *(*ElementsBackward(g.x, g.dy, g.y), *PerChannel(g.weight), *PerGroup(g.statistics, c1, c2)),
        *g.row_sizes,
        *(2, 4, 1e-5, 0.0),
        **ALONE,
    )
    check(g.y[-1, 2:], g.dx[0, 2:])


def instance_norm_running():
    samples, channels, spatial = 1024, 2**20, 1024
    statistics = reserved(samples, channels, 3, dtype=torch.float32)
    statistics[:, -32:] = torch.rand(samples, 32, 3)
    last = statistics[:, -32:].mean(0)
    running = torch.zeros(2, channels)
    run_program(
        instance_norm.instance_norm_running_kernel,
        (channels // 32 - 1, 0, 0),
        (channels // 32, 1, 1),
        *(statistics, *running, samples, channels, spatial),
        1.0,
        BLOCK=(32, 32),
    )
    check(running[0, -32:], last[:, 0] + last[:, 1])
    check(running[1, -32:], last[:, 2] * 1024 / 1023)


CASES = {
    case.__name__: (case,)
    for case in (
        batch_norm_statistics,
        batch_norm_normalize,
        batch_norm_inference,
        batch_norm_backward,
        group_norm_forward,
        group_norm_channels_last,
        group_norm_backward,
        group_norm_split_forward,
        group_norm_split_backward,
        instance_norm_running,
    )
}

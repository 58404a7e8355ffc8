"""Programs whose elements lie beyond 2^31, in memory that is reserved but never touched elsewhere.

The interpreter runs the one program that is asked for. A wrong address is outside the process or reads zeros,
so each case has a process of its own.
"""

from pathlib import Path

import pytest
from processes import exit_status

PRELUDE = """
import warnings
import torch
import torch.nn.functional as F
import triton.language as tl
from triton.runtime.interpreter import interpreter_builder as builder
from normreg.kernels import (
    batch_norm, batch_norm_split, bias_act_dropout, dropout, dropout_add, dropout_add_norm, group_norm,
    group_norm_split, instance_norm, layer_norm,
)
from normreg.kernels.random import keep_mask

def run_program(kernel, program, programs, *arguments, **constants):
    set_grid_idx, set_grid_dim = builder.set_grid_idx, builder.set_grid_dim
    builder.set_grid_dim = lambda *_: set_grid_dim(*programs)
    builder.set_grid_idx = lambda *_: set_grid_idx(*program)
    try:
        kernel[(1,)](*arguments, **constants)
    finally:
        builder.set_grid_idx, builder.set_grid_dim = set_grid_idx, set_grid_dim

def on_y(program, programs):
    return (0, program[0], 0), (1, programs[0], 1)

def reserved(*shape, dtype=torch.float16):
    return torch.empty(shape, dtype=dtype)

def check(result, expected):
    torch.testing.assert_close(result.float(), expected.float(), rtol=2e-3, atol=2e-3)

warnings.simplefilter("ignore")
ROWS = dict(COMPUTE_DTYPE=tl.float32, VECTOR=8, CHANNELS_FIRST=False, BLOCK_ROWS=4, BLOCK_COLS=1024)
CHUNKS = ROWS | dict(BLOCK_ROWS=1)
TILES = ROWS | dict(STAGES=3, IN_BLOCKS=False)
PARTS = dict(COMPUTE_DTYPE=tl.float32, VECTOR=8, PARTS=4, BLOCK_COLS=256)
torch.manual_seed(0)
rows, cols = 2**21 + 4, 1024
tile = rows // 4 - 1
assert (rows - 4) * cols >= 2**31
"""

LAST_ROWS = """
x, y = reserved(rows, cols), reserved(rows, cols)
rstd = reserved(rows, dtype=torch.float32)
x[-4:] = torch.randn(4, cols)
weight, bias = torch.randn(2, cols).half()
last = x[-4:].float().requires_grad_()
"""

CENTERED = """
expected = F.layer_norm(last, (cols,), weight.float(), bias.float())
mean = reserved(rows, dtype=torch.float32)
mean[-4:] = (last - last[:, :1]).mean(1).detach()
rstd[-4:] = last.var(1, correction=0).add(1e-5).rsqrt().detach()
forward = dict(CENTERED=True)
"""

NOT_CENTERED = """
expected = F.rms_norm(last, (cols,), weight.float(), 1e-5)
mean = bias = None
rstd[-4:] = last.square().mean(1).add(1e-5).rsqrt().detach()
forward = dict(CENTERED=False)
"""

ROW_CASES = {
    "forward": """
run_program(layer_norm.layer_norm_forward_kernel, (tile, 0, 0), (rows // 4, 1, 1),
            x, y, weight, bias, mean, rstd, rows, cols // 8, 1e-5, **ROWS, **forward)
check(y[-4:], expected)
""",
    "forward_chunked": """
run_program(layer_norm.layer_norm_forward_chunked_kernel, (rows - 1, 0, 0), (rows, 1, 1),
            x, y, weight, bias, mean, rstd, rows, cols // 8, 1e-5, **CHUNKS, **forward)
check(y[-1], expected[-1])
""",
    "forward_parts": """
run_program(layer_norm.layer_norm_forward_parts_kernel, (rows - 1, 0, 0), (rows, 1, 1),
            x, y, weight, bias, mean, rstd, rows, cols // 8, 1e-5, PACKED=True, **PARTS, **forward)
check(y[-1], expected[-1])
""",
    "backward": """
dy = reserved(rows, cols)
dy[-4:] = torch.randn(4, cols)
(dx,) = torch.autograd.grad(expected, last, dy[-4:].float())
run_program(layer_norm.layer_norm_backward_kernel, (0, tile, 0), (1, rows // 4, 1),
            dy, x, y, weight, mean, rstd, None, None, None, None, rows, cols // 8, rows // 4, **TILES)
check(y[-4:], dx)
""",
    "backward_parts": """
dy = reserved(rows, cols)
dy[-1] = torch.randn(cols)
(dx,) = torch.autograd.grad(expected[-1], last, dy[-1].float())
run_program(layer_norm.layer_norm_backward_parts_kernel, (0, rows - 1, 0), (1, rows, 1),
            dy, x, y, weight, mean, rstd, None, None, rows, cols // 8, **PARTS)
check(y[-1], dx[-1])
""",
    "backward_of_wide_rows": """
dy = reserved(rows, cols)
dy[-4:] = torch.randn(4, cols)
(dx,) = torch.autograd.grad(expected, last, dy[-4:].float())
sums = [reserved(rows, dtype=torch.float32), None if mean is None else reserved(rows, dtype=torch.float32)]
run_program(layer_norm.layer_norm_backward_sums_kernel, (rows - 1, 0, 0), (rows, 1, 1),
            dy, x, weight, mean, rstd, *sums, rows, cols // 8, **CHUNKS)
run_program(layer_norm.layer_norm_backward_kernel, (0, rows - 1, 0), (1, rows, 1),
            dy, x, y, weight, mean, rstd, *sums, None, None, rows, cols // 8, rows,
            STAGES=3, IN_BLOCKS=True, **CHUNKS)
check(y[-1], dx[-1])
""",
}

CHANNELS_FIRST = """
samples, channels, positions = 2**16 + 1, 64, 512
x, y, dy = (reserved(samples, channels, positions) for _ in range(3))
x[-1], dy[-1] = torch.randn(2, channels, positions)
weight, bias = torch.randn(2, channels).half()
mean, rstd = (reserved(samples, positions, dtype=torch.float32) for _ in range(2))
last = x[-1].float().t().requires_grad_()
expected = F.layer_norm(last, (channels,), weight.float(), bias.float())
(dx,) = torch.autograd.grad(expected, last, dy[-1].float().t())
mean[-1] = (last - last[:, :1]).mean(1).detach()
rstd[-1] = last.var(1, correction=0).add(1e-5).rsqrt().detach()
constants = dict(COMPUTE_DTYPE=tl.float32, VECTOR=8, CHANNELS_FIRST=True, BLOCK_ROWS=512, BLOCK_COLS=64)
last_program = ((samples - 1, 0, 0), (samples, 1, 1))
sizes = positions // 8, channels
"""

PLANES = """
samples, channels, spatial = 2**21 + 1, 2, 512
x, y = reserved(samples, channels, spatial), reserved(samples, channels, spatial)
x[-1] = torch.randn(channels, spatial)
x[0, :, 0] = 0  # the shift
layout = dict(COMPUTE_DTYPE=tl.float32, CHANNELS_LAST=False, VECTOR=8,
              BLOCK_SAMPLES=1, BLOCK_CHANNELS=2, BLOCK_SPATIAL=512)
# two splits, of which the second is the last sample
sizes = (samples, channels, spatial // 8, samples, samples - 1)
second = ((0, 1, 0), (1, 2, 1))
mirrored = ((0, 0, 0), (1, 2, 1))  # the same of a second launch, which is in reverse order
alone = dict(ACT=None, **layout)
mean, var = torch.randn(2), torch.rand(2) + 0.5
per_channel = lambda t: t.float().view(2, 1)
"""

GROUPS = """
samples, channels, spatial = 2**20 + 1, 4, 512
x, y = reserved(samples, channels, spatial), reserved(samples, channels, spatial)
x[-1] = torch.randn(channels, spatial)
weight, bias = torch.randn(2, channels).half()
last = x[-1:].float().requires_grad_()
expected = F.group_norm(last, 2, weight.float(), bias.float())
in_groups = last.detach().view(2, -1)
mean, var = (reserved(samples, 2, dtype=torch.float32) for _ in range(2))
mean[-1] = (in_groups - in_groups[:, :1]).mean(1)
var[-1] = in_groups.var(1, correction=0)
dy = reserved(samples, channels, spatial)
dy[-1] = torch.randn(channels, spatial)
(dx,) = torch.autograd.grad(expected, last, dy[-1:].float())
sizes = (samples, 2, 2, spatial // 8)
tile = dict(COMPUTE_DTYPE=tl.float32, VECTOR=8, SPATIAL=True, BLOCK_SAMPLES=1, BLOCK_GROUPS=1,
            BLOCK_CHANNELS=2, BLOCK_SPATIAL=512)
# as rows, of which the last two are the last group
rows = samples * channels
row_sizes = (1, rows, spatial // 8, 1, 1)
layout = dict(COMPUTE_DTYPE=tl.float32, CHANNELS_LAST=False, VECTOR=8,
              BLOCK_SAMPLES=1, BLOCK_CHANNELS=2, BLOCK_SPATIAL=512)
last_rows = ((rows // 2 - 1, 0, 0), (rows // 2, 1, 1))
"""

# x, and the decisions of the last 2048 elements as dropout draws them
FLAT = """
elements = rows * cols
program = elements // 2048 - 1
x, z = reserved(rows, cols), reserved(rows, cols)
x[-4:] = 1
run_program(dropout.dropout_kernel, (program, 0, 0), (program + 1, 1, 1),
            x, z, None, 5, elements // 8, 2**15, 2.0, 0.0, 0.0,
            COMPUTE_DTYPE=tl.float32, VECTOR=8, BITS=16, CALLS=256)
keep = z[-2:] != 0
z[-2:] = 0
assert 0 < keep.sum() < 2048
drawn = dict(COMPUTE_DTYPE=tl.float32, VECTOR=8, BITS=16, SHARED=False)
few = drawn | dict(BLOCK_ROWS=2, BLOCK_COLS=1024)
decided = (None, 5, rows, cols // 8, rows, 2**15, 2.0)
last_rows = ((rows // 2 - 1, 0, 0), (rows // 2, 1, 1))
"""

CASES = {
    f"{operation}_{name}": LAST_ROWS + statistics + case
    for operation, statistics in (("layer_norm", CENTERED), ("rms_norm", NOT_CENTERED))
    for name, case in ROW_CASES.items()
} | {
    "layer_norm_channels_forward": CHANNELS_FIRST
    + """
for kernel in (layer_norm.layer_norm_forward_kernel, layer_norm.layer_norm_forward_chunked_kernel):
    y[-1] = 0
    run_program(kernel, *last_program,
                x, y, weight, bias, mean, rstd, *sizes, 1e-5, CENTERED=True, **constants)
    check(y[-1], expected.t())
""",
    "layer_norm_channels_backward": CHANNELS_FIRST
    + """
run_program(layer_norm.layer_norm_backward_kernel, *on_y(*last_program),
            dy, x, y, weight, mean, rstd, None, None, None, None, *sizes, samples,
            STAGES=1, IN_BLOCKS=False, **constants)
check(y[-1], dx.t())
y[-1] = 0
sums = reserved(samples, positions, dtype=torch.float32), reserved(samples, positions, dtype=torch.float32)
run_program(layer_norm.layer_norm_backward_sums_kernel, *last_program,
            dy, x, weight, mean, rstd, *sums, *sizes, **constants)
run_program(layer_norm.layer_norm_backward_kernel, *on_y(*last_program),
            dy, x, y, weight, mean, rstd, *sums, None, None, *sizes, samples,
            STAGES=1, IN_BLOCKS=True, **constants)
check(y[-1], dx.t())
""",
    "batch_norm_statistics": PLANES
    + """
partial = torch.zeros(3, 2, 2, dtype=torch.float64)
run_program(batch_norm_split.batch_norm_statistics_kernel, *second, x, partial, None, *sizes, **layout)
check(partial[0, 1], torch.tensor([512.0, 512.0]))
check(partial[1, 1], x[-1].float().mean(1))
check(partial[2, 1] / 512, x[-1].float().var(1, correction=0))
""",
    "batch_norm_normalize": PLANES
    + """
partial = torch.stack([torch.full((2,), 8.0), mean, 8 * var])[:, None].double().contiguous()
run_program(batch_norm_split.batch_norm_normalize_kernel, *mirrored, x, y, partial, None, None, None, None,
            None, None, None, None, None, *sizes, 1, 0.1, 1e-5, 0.0, BLOCK_SPLITS=1, **alone)
check(y[-1], (x[-1] - per_channel(mean)) / per_channel(var + 1e-5).sqrt())
""",
    "batch_norm_inference": PLANES
    + """
residual = reserved(samples, channels, spatial)
bits = reserved(samples, channels, spatial // 8, dtype=torch.int8)
residual[-1] = torch.randn(channels, spatial)
run_program(batch_norm.batch_norm_inference_kernel, *second, x, y, None, None, mean, var, None, None,
            residual, bits, *sizes, 1e-5, 0.0, ACT="relu", **layout)
z = (x[-1] - per_channel(mean)) / per_channel(var + 1e-5).sqrt() + residual[-1]
check(y[-1], z.relu())
check(bits[-1, :, 0] & 1, z[:, 0] > 0)
""",
    "batch_norm_backward": PLANES
    + """
dy = reserved(samples, channels, spatial)
dy[-1] = torch.randn(channels, spatial)
rstd = (var + 1e-5).rsqrt()
x_hat = (x[-1] - per_channel(mean)) * per_channel(rstd)
partial = torch.zeros(2, 2, 2, dtype=torch.float64)
statistics = mean.double(), var
none = (None,) * 4
run_program(batch_norm_split.batch_norm_backward_sums_kernel, *second, dy, x, None, None, *statistics, *none,
            partial, *sizes, 1e-5, 0.0, **alone)
check(partial[0, 1], dy[-1].float().sum(1))
check(partial[1, 1] * rstd, (dy[-1] * x_hat).sum(1))
sums = torch.tensor([[[3.0, 5.0]], [[7.0, 11.0]]], dtype=torch.float64)
run_program(batch_norm_split.batch_norm_backward_kernel, *mirrored, dy, x, None, None, *statistics, None,
            None, y, sums, None, None, *sizes, 1, 10, 1e-5, 0.0, BLOCK_SPLITS=1, **alone)
c1, c2 = per_channel(sums[1, 0] * rstd) / 10, per_channel(sums[0, 0]) / 10
check(y[-1], (dy[-1] - x_hat * c1 - c2) * per_channel(rstd))
""",
    "group_norm_forward": GROUPS
    + """
run_program(group_norm.group_norm_forward_kernel, (2 * samples - 1, 0, 0), (2 * samples, 1, 1),
            x, y, weight, bias, mean, var, *sizes, 1e-5, **tile)
check(y[-1, 2:], expected[0, 2:])
""",
    "group_norm_backward": GROUPS
    + """
run_program(group_norm.group_norm_backward_kernel, (1, samples - 1, 0), (2, samples, 1),
            dy, x, y, weight, mean, var, None, None, *sizes, 1e-5, **tile)
check(y[-1, 2:], dx[0, 2:])
""",
    "group_norm_split_forward": GROUPS
    + """
partial = torch.zeros(3, 1, samples * 2, dtype=torch.float64)
partial[:, 0, -1] = torch.stack([torch.tensor(1024.0), in_groups.mean(1)[1], 1024 * var[-1, 1]])
run_program(group_norm_split.group_norm_normalize_kernel, *last_rows, x, y, partial, weight, bias, mean, var,
            *row_sizes, 1, 2, 4, 1e-5, BLOCK_SPLITS=1, **layout)
check(y[-1, 2:], expected[0, 2:])
""",
    "group_norm_split_backward": GROUPS
    + """
partial = torch.zeros(2, 1, rows, dtype=torch.float64)
run_program(group_norm_split.group_norm_backward_sums_kernel, *last_rows, dy, x, mean, var, partial,
            *row_sizes, 2, 1e-5, **layout)
x_hat = (in_groups[1] - in_groups[1].mean()) * (var[-1, 1] + 1e-5).rsqrt()
check(partial[0, 0, -2:], dy[-1, 2:].float().sum(1))
check(partial[1, 0, -2:], (dy[-1, 2:] * x_hat.view(2, -1)).sum(1))
c1, c2 = (torch.zeros(samples * 2) for _ in range(2))
wdy = (weight[2:, None] * dy[-1, 2:]).float().flatten()
c1[-1], c2[-1] = (x_hat * wdy).mean(), wdy.mean()
run_program(group_norm_split.group_norm_backward_input_kernel, *last_rows, dy, x, y, weight, mean, var,
            c1, c2, *row_sizes, 2, 4, 1e-5, **layout)
check(y[-1, 2:], dx[0, 2:])
""",
    "instance_norm_running": """
samples, channels, spatial = 3, 2**20 + 32, 1024
x = reserved(samples, channels, spatial)
x[:, -32:, 0] = torch.randn(3, 32).half()
mean, var = torch.randn(samples, channels), torch.rand(samples, channels)
running = torch.zeros(2, channels)
run_program(instance_norm.instance_norm_running_kernel, (channels // 32 - 1, 0, 0), (channels // 32, 1, 1),
            x, mean, var, *running, samples, channels, spatial, *x.stride()[:2], 1.0,
            BLOCK_SAMPLES=32, BLOCK_CHANNELS=32)
check(running[0, -32:], (x[:, -32:, 0] + mean[:, -32:]).mean(0))
check(running[1, -32:], var[:, -32:].mean(0) * 1024 / 1023)
""",
    "dropout of channels": """
groups, positions = 2**21 + 2, 1024
x, y = reserved(groups, positions), reserved(groups, positions)
x[-2:] = 1
program = groups // 2 - 1
run_program(dropout.dropout_grouped_kernel, (program, 0, 0), (program + 1, 1, 1), x, y, None, 5,
            groups, positions // 8, 2**31, 2.0, 0.0, 0.0,
            COMPUTE_DTYPE=tl.float32, GROUPS_LAST=False, VECTOR=8, BLOCK_GROUPS=2, BLOCK_POSITIONS=1024)
expected = dropout.dropout(torch.ones(groups), 0.5, 5)[-2:, None].expand(2, positions)
check(y[-2:], expected)
""",
    "dropout of channels_last": """
samples, channels, spatial = 2**21 + 1, 64, 16
x, y = reserved(samples, spatial, channels), reserved(samples, spatial, channels)
x[-1] = 1
run_program(dropout.dropout_grouped_kernel, (samples - 1, 0, 0), (samples, 1, 1), x, y, None, 5,
            channels // 8, spatial, 2**31, 2.0, 0.0, 0.0,
            COMPUTE_DTYPE=tl.float32, GROUPS_LAST=True, VECTOR=8, BLOCK_GROUPS=64, BLOCK_POSITIONS=16)
assert set(y[-1].unique().tolist()) == {0.0, 2.0}
assert (y[-1] == y[-1, :1]).all()
""",
    "dropout of samples": """
groups, positions = 2, 2**31 + 2048
x, y = reserved(groups, positions), reserved(groups, positions)
x[1, -2048:] = 1
blocks = positions // 2048
run_program(dropout.dropout_grouped_kernel, (2 * blocks - 1, 0, 0), (2 * blocks, 1, 1), x, y, None, 5,
            groups, positions // 8, 2**32 - 1, 2.0, 0.0, 0.0,
            COMPUTE_DTYPE=tl.float32, GROUPS_LAST=False, VECTOR=8, BLOCK_GROUPS=1, BLOCK_POSITIONS=2048)
assert set(y[1, -2048:].tolist()) == {2.0}
""",
    "dropout": """
elements = 2**31 + 2048
x, y = reserved(elements), reserved(elements)
x[-2048:] = 1
program = elements // 2048 - 1
run_program(dropout.dropout_kernel, (program, 0, 0), (program + 1, 1, 1),
            x, y, None, 5, elements // 8, 2**15, 2.0, 0.0, 0.0,
            COMPUTE_DTYPE=tl.float32, VECTOR=8, BITS=16, CALLS=256)
assert set(y[-2048:].tolist()) == {0.0, 2.0}
""",
    "dropout_add_norm": FLAT
    + """
y, rstd = reserved(rows, cols), reserved(rows, dtype=torch.float32)
run_program(dropout_add_norm.dropout_add_norm_forward_kernel, *last_rows, x, x, z, y, None, None, None, None,
            None, rstd, *decided, 1e-5, Z_DTYPE=tl.float16, CENTERED=False, **few)
check(z[-2:], 1 + 2 * keep)
check(y[-2:], F.rms_norm(z[-2:].float(), (cols,)))
z[-1], y[-1] = 0, 0
run_program(dropout_add_norm.dropout_add_norm_forward_parts_kernel, (rows - 1, 0, 0), (rows, 1, 1),
            x, x, z, y, None, None, None, None, None, rstd, *decided, 1e-5,
            Z_DTYPE=tl.float16, CENTERED=False, PACKED=True, PARTS=4, BLOCK_COLS=256, **drawn)
check(z[-1], 1 + 2 * keep[-1])
check(y[-1], F.rms_norm(z[-1].float(), (cols,)))
dy, dx = reserved(rows, cols), reserved(rows, cols)
dy[-2:] = torch.randn(2, cols)
run_program(dropout_add_norm.dropout_add_norm_backward_kernel, *on_y(*last_rows),
            dy, z, dy, None, dx, y, None, None, None, None, rstd, None, None, None, None, None,
            *decided, rows // 2, **few)
last = z[-2:].float().requires_grad_()
(dz,) = torch.autograd.grad(F.rms_norm(last, (cols,)), last, dy[-2:].float())
check(y[-2:], dz + dy[-2:])
check(dx[-2:], (dz + dy[-2:]) * 2 * keep)
""",
    "dropout_add": FLAT
    + """
run_program(dropout_add.dropout_add_kernel, (program, 0, 0), (program + 1, 1, 1), x, x, z, None, None,
            None, 5, 1, elements // 8, 1, 2**15, 2.0, **drawn, BLOCK_ROWS=1, BLOCK_COLS=2048)
check(z[-2:], 1 + 2 * keep)
partial = reserved(rows // 2, cols, dtype=torch.float32)
dz, ones = reserved(rows, cols), torch.ones(cols)
dz[-2:] = 3
run_program(dropout_add.dropout_add_backward_kernel, *on_y(*last_rows),
            dz, x, z, ones, None, partial, *decided, **few)
check(z[-2:], 6 * keep)
check(partial[-1], 6 * keep.float().sum(0))
""",
    "bias_act_dropout": FLAT
    + """
bias = torch.randn(cols)
run_program(bias_act_dropout.bias_act_dropout_forward_kernel, *last_rows, x, z, bias, *decided, 0.0,
            ACT="silu", **few)
check(z[-2:], F.silu(1 + bias) * 2 * keep)
partial = reserved(rows // 2, cols, dtype=torch.float32)
run_program(bias_act_dropout.bias_act_dropout_backward_kernel, *on_y(*last_rows),
            x, x, z, bias, partial, *decided, 0.0, ACT=None, **few)
check(z[-2:], 2 * keep)
check(partial[-1], 2 * keep.float().sum(0))
""",
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_elements_beyond_2_to_the_31(case, tmp_path):
    log = tmp_path / "log"
    assert exit_status(PRELUDE + case, Path(__file__).parent.parent, log) == 0, log.read_text()

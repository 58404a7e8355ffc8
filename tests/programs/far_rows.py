"""Rows beyond 2^31 elements: LayerNorm, RMSNorm, and LayerNorm over channels."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from normreg.kernels import layer_norm
from normreg.kernels.tiling.rows import RowTile
from programs.far import COLS, LAST_TILE, ROWS, check, on_y, reserved, run_program

TILE = dict(CHANNELS_FIRST=False, TILE=RowTile(4, COLS, 4, vector=8, stages=3))
CHUNKS = dict(CHANNELS_FIRST=False, TILE=RowTile(1, COLS, 4, vector=8, stages=3))
HELD = dict(TILE=RowTile(4, COLS // 2, 4, 2, packed=True, vector=8, stages=3))
TILES = dict(TILE=RowTile(1, COLS // 4, 4, tiles=4, packed=True, vector=8))
HALVES = dict(TILE=RowTile(1, COLS // 4, 4, tiles=4, vector=8, whole=True))
SIZES = ROWS, COLS // 8
STRIDES = None, COLS // 8  # rows that lie like y's, and rows that are said to be as far apart
LAST_ROW = (ROWS - 1, 0, 0), (ROWS, 1, 1)


def last_rows(centered):
    """Tensors of which the last four rows are there, and what is expected of those."""
    x, y = reserved(ROWS, COLS), reserved(ROWS, COLS)
    statistics = reserved(ROWS, 3 if centered else 1, dtype=torch.float32)
    x[-4:] = torch.randn(4, COLS)
    weight, bias = torch.randn(2, COLS).half()
    last = x[-4:].float().requires_grad_()
    if centered:
        expected = F.layer_norm(last, (COLS,), weight.float(), bias.float())
        set_statistics(statistics[-4:], last)
    else:
        expected = F.rms_norm(last, (COLS,), weight.float(), 1e-5)
        bias = None
        statistics[-4:, 0] = last.square().mean(1).add(1e-5).rsqrt().detach()
    forward = x, y, statistics, weight, bias, *SIZES
    backward = x, y, weight, statistics
    return SimpleNamespace(y=y, last=last, expected=expected, forward=forward, backward=backward)


def set_statistics(statistics, last):
    statistics[:, 0] = last.mean(1).detach()
    statistics[:, 1] = 0.0
    statistics[:, 2] = last.var(1, correction=0).add(1e-5).rsqrt().detach()


def gradients(case, rows=4):
    """dy of the last rows, and dx of them."""
    dy = reserved(ROWS, COLS)
    dy[-rows:] = torch.randn(rows, COLS)
    (dx,) = torch.autograd.grad(case.expected[-rows:], case.last, dy[-rows:].float())
    return dy, dx


def forward(centered):
    case = last_rows(centered)
    programs = (LAST_TILE, 0, 0), (ROWS // 4, 1, 1)
    kernel = layer_norm.layer_norm_forward_kernel
    for stride in STRIDES:
        case.y[-4:] = 0
        run_program(kernel, *programs, *case.forward, stride, 1e-5, **TILE, CENTERED=centered)
        check(case.y[-4:], case.expected)


def forward_chunks(centered):
    case, kernel = last_rows(centered), layer_norm.layer_norm_forward_chunks_kernel
    for stride in STRIDES:
        case.y[-1] = 0
        run_program(kernel, *LAST_ROW, *case.forward, stride, 1e-5, **CHUNKS, CENTERED=centered)
        check(case.y[-1], case.expected[-1])


def forward_tiles(centered):
    case, kernel = last_rows(centered), layer_norm.layer_norm_forward_tiles_kernel
    for stride in STRIDES:
        case.y[-1] = 0
        run_program(kernel, *LAST_ROW, *case.forward, stride, 1e-5, **TILES, CENTERED=centered)
        check(case.y[-1], case.expected[-1])


def backward(centered):
    case = last_rows(centered)
    dy, dx = gradients(case)
    for stride in STRIDES:
        case.y[-4:] = 0
        run_program(
            layer_norm.layer_norm_backward_kernel,
            (0, LAST_TILE, 0),
            (1, ROWS // 4, 1),
            *(dy, *case.backward, None, None, None, None),
            *SIZES,
            stride,
            ROWS // 4,
            **TILE,
            CENTERED=centered,
            IN_BLOCKS=False,
        )
        check(case.y[-4:], dx)


def backward_of_one_row(kernel, tile, centered):
    case = last_rows(centered)
    dy, dx = gradients(case, rows=1)
    run_program(
        kernel,
        *on_y(*LAST_ROW),
        *(dy, *case.backward, None, None, None, None),
        *SIZES,
        **tile,
        CENTERED=centered,
    )
    check(case.y[-1], dx[-1])


def backward_tiles(centered):
    backward_of_one_row(layer_norm.layer_norm_backward_tiles_kernel, TILES, centered)


def backward_wide(centered):
    backward_of_one_row(layer_norm.layer_norm_backward_wide_kernel, HALVES, centered)


def backward_held(centered):
    case = last_rows(centered)
    dy, dx = gradients(case)
    for stride in STRIDES:
        case.y[-4:] = 0
        run_program(
            layer_norm.layer_norm_backward_held_kernel,
            (0, LAST_TILE, 0),
            (1, ROWS // 4, 1),
            *(dy, *case.backward, None, None, None, None),
            *SIZES,
            stride,
            4,
            **HELD,
            CENTERED=centered,
        )
        check(case.y[-4:], dx)


def backward_of_wide_rows(centered):
    case = last_rows(centered)
    dy, dx = gradients(case)
    x, y, weight, statistics = case.backward
    sums = [
        reserved(ROWS, dtype=torch.float32),
        reserved(ROWS, dtype=torch.float32) if centered else None,
    ]
    run_program(
        layer_norm.layer_norm_backward_sums_kernel,
        *LAST_ROW,
        *(dy, x, weight, statistics, *sums),
        *SIZES,
        **CHUNKS,
        CENTERED=centered,
    )
    run_program(
        layer_norm.layer_norm_backward_kernel,
        *on_y(*LAST_ROW),
        *(dy, x, y, weight, statistics, *sums, None, None),
        *SIZES,
        None,
        ROWS,
        IN_BLOCKS=True,
        **CHUNKS,
        CENTERED=centered,
    )
    check(y[-1], dx[-1])


CHANNELS_FIRST = dict(CHANNELS_FIRST=True, TILE=RowTile(512, 64, 4, vector=8))


def channels():
    """Tensors of which the last sample is there."""
    samples, channels, positions = 2**16 + 1, 64, 512
    x, y, dy = (reserved(samples, channels, positions) for _ in range(3))
    x[-1], dy[-1] = torch.randn(2, channels, positions)
    weight, bias = torch.randn(2, channels).half()
    statistics = reserved(samples, positions, 3, dtype=torch.float32)
    last = x[-1].float().t().requires_grad_()
    expected = F.layer_norm(last, (channels,), weight.float(), bias.float())
    (dx,) = torch.autograd.grad(expected, last, dy[-1].float().t())
    set_statistics(statistics[-1], last)
    return SimpleNamespace(
        x=x,
        y=y,
        dy=dy,
        weight=weight,
        bias=bias,
        statistics=statistics,
        expected=expected,
        dx=dx,
        samples=samples,
        positions=positions,
        sizes=(positions // 8, channels),
        last_program=((samples - 1, 0, 0), (samples, 1, 1)),
    )


def channels_forward():
    c = channels()
    for kernel in (layer_norm.layer_norm_forward_kernel, layer_norm.layer_norm_forward_chunks_kernel):
        c.y[-1] = 0
        run_program(
            kernel,
            *c.last_program,
            *(c.x, c.y, c.statistics, c.weight, c.bias),
            *c.sizes,
            None,
            1e-5,
            CENTERED=True,
            **CHANNELS_FIRST,
        )
        check(c.y[-1], c.expected.t())


def channels_backward():
    c = channels()
    kernel = layer_norm.layer_norm_backward_kernel
    run_program(
        kernel,
        *on_y(*c.last_program),
        *(c.dy, c.x, c.y, c.weight, c.statistics, None, None, None, None),
        *c.sizes,
        None,
        c.samples,
        CENTERED=True,
        IN_BLOCKS=False,
        **CHANNELS_FIRST,
    )
    check(c.y[-1], c.dx.t())
    c.y[-1] = 0
    sums = [reserved(c.samples, c.positions, dtype=torch.float32) for _ in range(2)]
    run_program(
        layer_norm.layer_norm_backward_sums_kernel,
        *c.last_program,
        *(c.dy, c.x, c.weight, c.statistics, *sums),
        *c.sizes,
        CENTERED=True,
        **CHANNELS_FIRST,
    )
    run_program(
        kernel,
        *on_y(*c.last_program),
        *(c.dy, c.x, c.y, c.weight, c.statistics, *sums, None, None),
        *c.sizes,
        None,
        c.samples,
        CENTERED=True,
        IN_BLOCKS=True,
        **CHANNELS_FIRST,
    )
    check(c.y[-1], c.dx.t())


OF_BOTH_NORMS = (
    forward,
    forward_chunks,
    forward_tiles,
    backward,
    backward_tiles,
    backward_held,
    backward_wide,
    backward_of_wide_rows,
)
CASES = {
    f"{norm}_{case.__name__}": (case, norm == "layer_norm")
    for norm in ("layer_norm", "rms_norm")
    for case in OF_BOTH_NORMS
} | {
    "layer_norm_channels_forward": (channels_forward,),
    "layer_norm_channels_backward": (channels_backward,),
}

"""The last launch of `ada_norm`'s backward: of what programs added up, the gradients of each sample."""

from typing import NamedTuple

import triton
import triton.language as tl

from normreg.kernels.ada_norm.tile import Partials
from normreg.kernels.column_sums import column_sum
from normreg.kernels.device.rows import Parameters, load


class Sums(NamedTuple):
    """[samples, cols] each, or None."""

    gate: tl.tensor
    scale: tl.tensor
    shift: tl.tensor
    weight: tl.tensor
    bias: tl.tensor


@triton.jit
def store_sums(ptr, sums, col, cols):
    if ptr is not None:
        place = tl.program_id(0).to(tl.int64) * cols + col
        tl.store(ptr + place, sums.to(ptr.dtype.element_ty), mask=col < cols)


@triton.jit(do_not_specialize=["programs", "cols", "scale_stride"])
def ada_norm_backward_sums_kernel(
    partials: Partials,
    scale_ptr,  # [samples, cols] with a stride, or None where it is the rows' own
    parameters: Parameters,
    sums: Sums,
    programs,
    cols,  # in vectors, as is the stride
    scale_stride,
    TILE: tl.constexpr,
):
    """Some columns of a sample."""
    COLS: tl.constexpr = TILE.cols
    cols = cols * TILE.vector
    sample = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    mask = col < cols
    place = sample * programs * cols
    if partials.gate is not None:
        store_sums(sums.gate, column_sum(partials.gate + place, programs, col, cols, TILE), col, cols)
    products = tl.zeros([COLS], tl.float32)
    total = tl.zeros([COLS], tl.float32)
    if partials.products is not None:
        products = column_sum(partials.products + place, programs, col, cols, TILE)
    if partials.sums is not None:
        total = column_sum(partials.sums + place, programs, col, cols, TILE)
    store_sums(sums.shift, total, col, cols)
    if sums.scale is not None:
        dscale = products
        if parameters.weight is not None:
            dscale *= load(parameters.weight, col, mask, products.dtype)
        if parameters.bias is not None:
            dscale += total * load(parameters.bias, col, mask, products.dtype)
        store_sums(sums.scale, dscale, col, cols)
    if scale_ptr is not None:
        factor = 1.0 + load(scale_ptr + sample * scale_stride * TILE.vector, col, mask, products.dtype)
        products *= factor
        total *= factor
    store_sums(sums.weight, products, col, cols)
    store_sums(sums.bias, total, col, cols)

"""The forward of `dropout_add_norm`, where its formulas are, of rows that are held in parts."""

import triton
import triton.language as tl

from normreg.kernels.device.branch import branch, decisions
from normreg.kernels.device.random import load_seed
from normreg.kernels.device.tiles import load_part, packed, store_part
from normreg.kernels.layer_norm.tiles import store_normalized


@triton.jit(do_not_specialize=["seed_ptr", "seed", "rows", "cols", "rows_per_sample", "keep_threshold"])
def dropout_add_norm_forward_parts_kernel(
    x_ptr, residual_ptr, z_ptr, y_ptr,        # [rows, cols]; residual and z or None
    layer_scale_ptr, row_scale_ptr,           # [cols], [samples]; or None
    weight_ptr, bias_ptr,                     # [cols] or None
    mean_ptr, rstd_ptr,                       # [rows] or None
    seed_ptr,                                 # int64 scalar, added to `seed`; None where nothing is drawn
    seed: tl.int64,
    rows, cols,                               # cols in vectors
    rows_per_sample, keep_threshold: tl.int64, scale: tl.float64, eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, Z_DTYPE: tl.constexpr, VECTOR: tl.constexpr,
    CENTERED: tl.constexpr, BITS: tl.constexpr, SHARED: tl.constexpr, PACKED: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """A row."""
    cols *= VECTOR
    row = tl.program_id(0).to(tl.int64)
    base = row * cols
    seed = load_seed(seed_ptr, seed)

    z = ()
    shift = None
    one_row = row + tl.arange(0, 1)
    for i in tl.static_range(PARTS):
        keep, factor = decisions(
            seed, row_scale_ptr, one_row, one_row < rows, rows_per_sample, cols, i * BLOCK_COLS,
            keep_threshold, scale, COMPUTE_DTYPE, BITS, SHARED, BLOCK_COLS,
        )  # fmt: skip
        x = load_part(x_ptr + base, i, cols, PARTS, BLOCK_COLS).to(COMPUTE_DTYPE)
        part = branch(x[None, :], keep, factor).reshape(BLOCK_COLS)
        if layer_scale_ptr is not None:
            part *= load_part(layer_scale_ptr, i, cols, PARTS, BLOCK_COLS).to(COMPUTE_DTYPE)
        if residual_ptr is not None:
            part += load_part(residual_ptr + base, i, cols, PARTS, BLOCK_COLS).to(COMPUTE_DTYPE)
        part = part.to(Z_DTYPE)
        if CENTERED and i == 0:
            shift = tl.sum(tl.where(tl.arange(0, BLOCK_COLS) == 0, part.to(COMPUTE_DTYPE), 0.0))
        if z_ptr is not None:
            store_part(z_ptr + base, part, i, cols, PARTS)
        z += (packed(part) if PACKED else part,)
    store_normalized(
        z, shift, y_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, row, cols, eps,
        Z_DTYPE, COMPUTE_DTYPE, CENTERED, PACKED, PARTS, BLOCK_COLS,
    )  # fmt: skip

"""Device helpers on rows: what the backward of a normalisation over rows loads and adds up."""

import triton
import triton.language as tl


@triton.jit
def load_x_hat(x_ptr, offsets, mask, shift, mean, rstd, COMPUTE_DTYPE: tl.constexpr):
    """x_hat of the unmasked elements, 0 elsewhere, whatever the statistics are there."""
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    if mean is not None:
        x = x - shift - mean
    return tl.where(mask, x * rstd, 0.0)


@triton.jit
def load_wdy(dy_ptr, weight_ptr, col, mask, COMPUTE_DTYPE: tl.constexpr):
    """weight dy of one row's chunk."""
    wdy = tl.load(dy_ptr + col, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    if weight_ptr is not None:
        wdy *= tl.load(weight_ptr + col, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    return wdy


@triton.jit
def column_sums(partial_ptr, partials, cols, col, BLOCK_ROWS: tl.constexpr):
    """Sum over the rows of [partials, cols], in the same order every time."""
    col_mask = col < cols
    total = tl.zeros([BLOCK_ROWS, col.shape[0]], partial_ptr.dtype.element_ty)
    for start in range(0, partials, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        mask = (row < partials)[:, None] & col_mask[None, :]
        total += tl.load(partial_ptr + row[:, None] * cols + col[None, :], mask=mask, other=0.0)
    return tl.sum(total, 0)

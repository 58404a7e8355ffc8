"""Device helpers on a branch: what dropout, row scale and layer scale leave of x before a residual is added.

    branch = layer_scale row_scale x / keep     where kept, else 0

`keep` and the decision are `dropout`'s, of the element, or one for all rows of a sample (stochastic depth).
A tensor is [rows, cols]; row_scale is [samples], and a sample has `rows_per_sample` rows. Without layer scale
the map from x to the branch is its own transpose, as is all of it for given scales: dx of the gradient of the
branch is the branch of that gradient, and no mask is stored.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from normreg.kernels import dropout, tiling
from normreg.kernels.device.random import GROUP_BITS, keep_at, keep_in_rows


@triton.jit
def decisions(
    seed, row_scale_ptr,
    row, row_mask, rows_per_sample, cols, first_col, keep_threshold, scale,
    DTYPE: tl.constexpr, BITS: tl.constexpr, SHARED: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """keep [rows, cols or 1], and the product of the scales [rows, 1]; constants where there are none."""
    factor = tl.full([row.shape[0]], 1.0, DTYPE)
    if row_scale_ptr is not None:
        factor = tl.load(row_scale_ptr + row // rows_per_sample, mask=row_mask, other=0.0).to(DTYPE)
    if BITS == 0:
        keep = tl.full([row.shape[0], 1], 1, tl.int1)
    else:
        factor *= tl.full([], scale, DTYPE)
        if SHARED:
            keep = keep_at(seed, row // rows_per_sample, keep_threshold)[:, None]
        else:
            keep = keep_in_rows(seed, row, cols, first_col, keep_threshold, BITS, BLOCK_COLS)
    return keep, factor[:, None]


@triton.jit
def branch(x, keep, factor):
    """What layer_scale multiplies; what is not kept is dropped, inf and nan too."""
    return tl.where(keep, x * factor, 0.0)


class Branch(NamedTuple):
    """What of a branch is the same at every call."""

    p: float  # of zero
    bits: int  # of a decision; 0 where nothing is dropped
    shared: bool = False  # one decision a sample, not an element
    scaled: bool = True  # by 1 / keep

    def arguments(self, rows, samples):
        """rows_per_sample, keep_threshold and scale as the kernels take them, and the constants."""
        constants = dict(BITS=self.bits, SHARED=self.shared)
        if self.bits == 0:
            return (rows // samples, 0, 1.0), constants
        scaled = dropout.scaled if self.scaled else dropout.unscaled
        keep_threshold, scale, *_ = dropout.layer_constants(self.p, self.bits, scaled, linear=True)
        return (rows // samples, keep_threshold, scale), constants


def of_elements(p, dtype):
    """Dropout of a tensor of the dtype."""
    return Branch(p, tiling.elements.dropout_bits(dtype, p) if p else 0)


def of_samples(p, scaled):
    """Stochastic depth."""
    return Branch(p, GROUP_BITS, True, scaled)


def samples_of(x, rule, row_scale):
    """How many different decisions or row scales there are; the rows of x are a multiple of it."""
    if rule.shared:
        return x.shape[0]
    return 1 if row_scale is None else row_scale.numel()

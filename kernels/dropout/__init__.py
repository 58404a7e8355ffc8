"""Dropout: y = scale x - shift where kept, else dropped, and dx = scale dy where kept, else 0.

                scale                                       shift                   dropped
    dropout     1 / keep                                    0                       0
    unscaled    1                                           0                       0
    alpha       a = (keep (1 + alpha^2 (1 - keep)))^-1/2    a alpha (1 - keep)      a alpha keep

An element is kept with the probability `keep` exactly, and all three follow from it (`drop`): E[y] = x in the
first row, and mean 0 and variance 1 are kept in the third, for the p that was rounded, not the p that was
asked for. Where p is 1, y is 0, as torch's is.

The elements of a group share one decision: a channel of a sample, or a sample. The mask is a function of the
seed and of the logical index of the element or group (`device.random`); forward and backward are one kernel.
No mask is stored: 1 element read and 1 written each way, and dropped groups of contiguous elements are not
read.
"""

import torch
import triton
from torch import Tensor

from normreg.kernels import launch, tiling
from normreg.kernels.device.random import GROUP_BITS
from normreg.kernels.dropout.channels_last import dropout_channels_last_kernel
from normreg.kernels.dropout.drop import (
    ALPHA,
    Constants,
    alpha,
    layer_constants,
    scaled,
    seed_arguments,
    unscaled,
)
from normreg.kernels.dropout.elements import dropout_kernel
from normreg.kernels.dropout.groups import dropout_grouped_kernel

__all__ = ["ALPHA", "alpha", "dropout", "layer_constants", "scaled", "unscaled"]


@launch.kept
def elements_launch(
    elements: int,
    dtype: torch.dtype,
    p: float,
    constants: Constants,
    linear: bool,
    device: torch.device,
) -> launch.Launch:
    bits, calls = tiling.elements.dropout_bits(dtype, p), tiling.elements.dropout_calls()
    vector = tiling.hardware.vector(elements)
    return launch.Launch(
        dropout_kernel,
        (triton.cdiv(elements, calls * (128 // bits)),),
        device,
        elements // vector,
        *layer_constants(p, bits, constants, linear),
        VECTOR=vector,
        BITS=bits,
        CALLS=calls,
        num_warps=tiling.elements.DROPOUT_NUM_WARPS,
    )


@launch.kept
def channels_last_launch(
    shape: torch.Size,
    dtype: torch.dtype,
    p: float,
    constants: Constants,
    linear: bool,
    device: torch.device,
) -> launch.Launch | None:
    """None where a Philox call would decide of positions of two channels."""
    samples, channels, positions = shape[0], shape[1], shape[2:].numel()
    bits = tiling.elements.dropout_bits(dtype, p)
    if positions % (128 // bits):
        return None
    tile = tiling.elements.dropout_channels_last_tile(channels, positions)
    return launch.Launch(
        dropout_channels_last_kernel,
        (samples * triton.cdiv(channels, tile.rows) * triton.cdiv(positions, tile.cols),),
        device,
        channels // tile.vector,
        positions // (128 // bits),
        *layer_constants(p, bits, constants, linear),
        BITS=bits,
        TILE=tile,
        num_warps=tile.num_warps,
    )


@launch.kept
def groups_launch(
    samples: int,
    groups: int,
    positions: int,
    groups_last: bool,
    p: float,
    constants: Constants,
    linear: bool,
    device: torch.device,
) -> launch.Launch:
    vector = tiling.hardware.vector(groups if groups_last else positions)
    in_vectors = (groups // vector, positions) if groups_last else (groups, positions // vector)
    tile = tiling.elements.dropout_grouped_tile(groups, positions, groups_last)
    return launch.Launch(
        dropout_grouped_kernel,
        (samples * triton.cdiv(groups, tile.rows) * triton.cdiv(positions, tile.cols),),
        device,
        *in_vectors,
        *layer_constants(p, GROUP_BITS, constants, linear),
        GROUPS_LAST=groups_last,
        TILE=tile._replace(vector=vector),
        num_warps=tile.num_warps,
    )


def dropout(
    x: Tensor,
    p: float,
    seed: int | Tensor,
    out: Tensor | None = None,
    leading: int | None = None,
    constants: Constants = scaled,
    linear: bool = False,
) -> Tensor:
    """Dropout of x into `out`, or into a new tensor like it. `seed` is an int or an int64 tensor.

    leading: elements whose indices in the first `leading` dimensions are the same share a decision; None
        where each has its own. x and out are contiguous or channels-last.
    constants: `scaled`, `unscaled` or `alpha`. linear: without shift and dropped, as dx is.
    """
    y = torch.empty_like(x) if out is None else out
    positions = 1 if leading is None else x.shape[leading:].numel()
    call: launch.Launch | None
    if leading is None and not x.is_contiguous():
        call = channels_last_launch(x.shape, x.dtype, p, constants, linear, x.device)
        if call is None:
            return y.copy_(dropout(x.contiguous(), p, seed, None, leading, constants, linear))
    elif positions == 1:
        call = elements_launch(x.numel(), x.dtype, p, constants, linear, x.device)
    else:
        groups_last = leading == 2 and not x.is_contiguous()
        samples, groups = (x.shape[0], x.shape[1]) if groups_last else (1, x.shape[:leading].numel())
        call = groups_launch(samples, groups, positions, groups_last, p, constants, linear, x.device)
    seed_ptr, seed = seed_arguments(seed, x.device)
    launch.launch(call, x, y, seed_ptr, numbers=(seed,))
    return y

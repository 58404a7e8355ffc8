"""Proof that the tests can fail: each of these planted bugs must turn the named tests red.

A mutation is a line of the library and what it is replaced by, in a copy of the checkout. The line must occur
exactly once, so that a mutation cannot outlive the code that it mutates.
"""

import contextlib
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import exit_status

from normreg.kernels.launch import INTERPRET

ROOT = Path(__file__).parent.parent


class Mutation(NamedTuple):
    file: str
    was: str
    now: str
    tests: str


CHUNK = (
    "        x = tl.load(x_ptr + col[None, :] * stride_col, mask=mask, other=0.0).to(COMPUTE_DTYPE)\n"
    "        if CENTERED:\n            x = x -"
)

MUTATIONS = {
    # kernels/layer_norm.py
    "forward ignores the row mask": Mutation(
        "kernels/layer_norm.py",
        "    row_mask = row < left\n    mask = ",
        "    row_mask = row >= 0\n    mask = ",
        "test_layer_norm.py::test_rows_beside_a_tile",
    ),
    "forward is not shifted": Mutation(
        "kernels/layer_norm.py",
        "    x -= shift[:, None]\n",
        "    shift = tl.zeros_like(shift)\n",
        "test_layer_norm.py::test_a_large_mean_costs_nothing",
    ),
    "eps is left out": Mutation(
        "kernels/layer_norm.py",
        "    rstd = rstd_of(m2 / cols, eps)\n    y = x",
        "    rstd = rstd_of(m2 / cols, 0.0)\n    y = x",
        "test_layer_norm.py::test_eps",
    ),
    "a chunk counts its padding": Mutation(
        "kernels/layer_norm.py",
        "        chunk = tl.minimum(cols - start, BLOCK_COLS).to(COMPUTE_DTYPE)\n",
        "        chunk = tl.full([], BLOCK_COLS, COMPUTE_DTYPE)\n",
        "test_layer_norm.py::test_absent_parameters",
    ),
    "dx loses c1": Mutation(
        "kernels/rows.py",
        "        c1 = tl.sum(x_hat * wdy, 1) / cols\n",
        "        c1 = tl.sum(x_hat * 0.0, 1) / cols\n",
        "test_layer_norm.py::test_rows_beside_a_tile",
    ),
    "dx loses c2": Mutation(
        "kernels/rows.py",
        "            c2 = tl.sum(wdy, 1) / cols\n",
        "            pass\n",
        "test_layer_norm.py::test_rows_beside_a_tile",
    ),
    "dx of wide rows has the last chunk's c1": Mutation(
        "kernels/layer_norm.py",
        "        c1 += tl.sum(x_hat * wdy, 1) / cols\n",
        "        c1 = tl.sum(x_hat * wdy, 1) / cols\n",
        "test_layer_norm.py::test_absent_parameters",
    ),
    "dx of wide rows loses c2": Mutation(
        "kernels/rows.py",
        "            c2 = tl.load(c2_ptr + row, mask=row_mask, other=0.0)\n",
        "            pass\n",
        "test_layer_norm.py::test_absent_parameters",
    ),
    "dweight keeps only the last tile": Mutation(
        "kernels/layer_norm.py",
        "        dweight += dy * x_hat\n",
        "        dweight = dy * x_hat\n",
        "test_layer_norm.py::test_rows_beside_a_tile",
    ),
    "compiled anew for another number of rows": Mutation(
        "kernels/layer_norm.py",
        '@triton.jit(do_not_specialize=["rows", "cols"])\ndef layer_norm_forward_kernel(',
        "@triton.jit\ndef layer_norm_forward_kernel(",
        "test_launch.py -k sweep",
    ),
    "row offsets in 32 bits": Mutation(
        "kernels/rows.py",
        "        row = tl.full([], BLOCK_ROWS, tl.int64) * tile\n",
        "        row = tile * BLOCK_ROWS\n",
        "test_far_offsets.py -k layer_norm_forward",
    ),
    "columns are not masked": Mutation(
        "kernels/layer_norm.py",
        "    row_mask = row < left\n    mask = row_mask[:, None] & (col < cols)[None, :]\n",
        "    row_mask = row < left\n    mask = row_mask[:, None] & (col >= 0)[None, :]\n",
        "test_layer_norm.py -k 'agrees_with_torch and 17-'",
    ),
    "a chunk is not masked": Mutation(
        "kernels/layer_norm.py",
        "        mask = row_mask[:, None] & (col < cols)[None, :]\n" + CHUNK,
        "        mask = row_mask[:, None] & (col >= 0)[None, :]\n" + CHUNK,
        "test_layer_norm.py::test_absent_parameters",
    ),
    "dbias keeps only the last tile": Mutation(
        "kernels/layer_norm.py",
        "        dbias += dy\n",
        "        dbias = dy\n",
        "test_layer_norm.py::test_rows_beside_a_tile",
    ),
    "the backward loads a tile when it needs it": Mutation(
        "kernels/layer_norm.py",
        "STAGES=tile.stages)",
        "STAGES=1)",
        "test_tiling.py -k stages_of_the_backward",
    ),
    # kernels/parts.py, kernels/layer_norm_parts.py
    "a part is not masked": Mutation(
        "kernels/layer_norm_parts.py",
        "            total += within(part, i, cols, PARTS)\n",
        "            total += part\n",
        "test_layer_norm.py -k 'agrees_with_torch and 1000-'",
    ),
    "squares of a part's padding are added": Mutation(
        "kernels/layer_norm_parts.py",
        "        part = within(part - shift - mean, i, cols, PARTS)\n",
        "        part = part - shift - mean\n",
        "test_layer_norm.py -k 'agrees_with_torch and 1000-'",
    ),
    "squares of the last part alone": Mutation(
        "kernels/layer_norm_parts.py",
        "        squares += part * part\n",
        "        squares = part * part\n",
        "test_layer_norm.py -k 'agrees_with_torch and 1000-'",
    ),
    "the mean square is that of the last part": Mutation(
        "kernels/layer_norm_parts.py",
        "        squares += part * part\n",
        "        squares = part * part\n",
        "test_rms_norm.py -k 'agrees_with_torch and 1000-'",
    ),
    "parts are not shifted": Mutation(
        "kernels/layer_norm_parts.py",
        "        shift = tl.load(x_ptr).to(COMPUTE_DTYPE)\n",
        "        shift = tl.load(x_ptr).to(COMPUTE_DTYPE) * 0.0\n",
        "test_layer_norm.py -k 'a_large_mean_costs_nothing and 760'",
    ),
    "a packed element takes its neighbour's sign": Mutation(
        "kernels/parts.py",
        "    return (low.to(tl.int32) & 0xFFFF) |",
        "    return low.to(tl.int32) |",
        "test_layer_norm.py -k 'agrees_with_torch and 760 and float16'",
    ),
    "every part has the first part's parameters": Mutation(
        "kernels/parts.py",
        "        part = tl.load(ptr + col)\n",
        "        part = tl.load(ptr + col % BLOCK_COLS)\n",
        "test_layer_norm.py -k 'agrees_with_torch and 1000-'",
    ),
    "rows of parts in 32 bits": Mutation(
        "kernels/layer_norm_parts.py",
        "    row = tl.program_id(0).to(tl.int64)\n",
        "    row = tl.program_id(0)\n",
        "test_far_offsets.py -k layer_norm_forward_parts",
    ),
    "x_hat of padding is not a number": Mutation(
        "kernels/layer_norm_parts.py",
        "True, PARTS)\n                wdy = converted",
        "True, 0)\n                wdy = converted",
        "test_layer_norm.py -k 'constant_rows and 760'",
    ),
    "dweight of the last row alone": Mutation(
        "kernels/layer_norm_parts.py",
        "            next_dweight += (dweight[i] + wdy * x_hat,)\n",
        "            next_dweight += (wdy * x_hat,)\n",
        "test_layer_norm.py -k 'agrees_with_torch and 760 and float16'",
    ),
    "dbias is scaled by rstd": Mutation(
        "kernels/layer_norm_parts.py",
        "            next_dbias += (dbias[i] + wdy,)\n",
        "            next_dbias += (dbias[i] + wdy * rstd,)\n",
        "test_layer_norm.py -k 'agrees_with_torch and 760 and float16'",
    ),
    "c1 of the last part": Mutation(
        "kernels/layer_norm_parts.py",
        "                x_hat_wdy += tl.sum(",
        "                x_hat_wdy = tl.sum(",
        "test_layer_norm.py -k 'agrees_with_torch and 760 and float16'",
    ),
    "c2 of the last part": Mutation(
        "kernels/layer_norm_parts.py",
        "                wdys += tl.sum(",
        "                wdys = tl.sum(",
        "test_layer_norm.py -k 'agrees_with_torch and 760 and float16'",
    ),
    "rows of the backward's parts in 32 bits": Mutation(
        "kernels/layer_norm_parts.py",
        "        base = cols.to(tl.int64) * row\n",
        "        base = cols * row\n",
        "test_far_offsets.py -k layer_norm_backward_parts",
    ),
    "a gradient of 32 bits is packed": Mutation(
        "kernels/layer_norm.py",
        "    wider = dy.dtype if dy.dtype.itemsize > x.dtype.itemsize else x.dtype\n",
        "    wider = x.dtype\n",
        "test_rms_norm.py -k 'float32_from_16_bits and 760'",
    ),
    "sums of dy are not counted among what is held": Mutation(
        "kernels/tiling.py",
        "rows.cols <= HELD_COLS_BACKWARD[centered]",
        "rows.cols <= HELD_COLS_BACKWARD[False]",
        "test_tiling.py -k parts_of_the_backward",
    ),
    # kernels/rows.py
    "channels-first tiles stay in the first sample": Mutation(
        "kernels/rows.py",
        "        return sample * rows + row, rows - row, sample * rows * cols + row\n",
        "        return sample * rows + row, rows - row, row.to(tl.int64)\n",
        "test_layer_norm_channels.py::test_agrees_with_the_permuting_layer",
    ),
    "channels-first statistics lie where the tile is": Mutation(
        "kernels/rows.py",
        "        return sample * rows + row, rows - row, sample * rows * cols + row\n",
        "        return row.to(tl.int64), rows - row, sample * rows * cols + row\n",
        "test_layer_norm_channels.py::test_gradient_of_any_subset",
    ),
    "channels-first tiles run into the next channel": Mutation(
        "kernels/rows.py",
        "        return sample * rows + row, rows - row, sample * rows * cols + row\n",
        "        return sample * rows + row, rows, sample * rows * cols + row\n",
        "test_layer_norm_channels.py -k 'permuting and 130'",
    ),
    "channels-first samples in 32 bits": Mutation(
        "kernels/rows.py",
        "        sample = (tile // tiles).to(tl.int64)\n",
        "        sample = tile // tiles\n",
        "test_far_offsets.py -k layer_norm_channels",
    ),
    "channels-first counts the tiles of one sample": Mutation(
        "kernels/rows.py",
        "        return self.samples * triton.cdiv(self.rows, tile.rows)\n",
        "        return triton.cdiv(self.rows, tile.rows)\n",
        "test_layer_norm_channels.py::test_agrees_with_the_permuting_layer",
    ),
    "the second derivative over channels is that over rows": Mutation(
        "normreg/ops/layer_norm_channels.py",
        "            mean, rstd = gradient.statistics(x, (1,), ctx.eps)\n",
        "            mean, rstd = gradient.statistics(x, (-1,), ctx.eps)\n",
        "test_layer_norm_channels.py::test_second_derivative_where_dy_needs_no_gradient",
    ),
    "padding is not masked in the backward": Mutation(
        "kernels/rows.py",
        "    return tl.where(mask, x * rstd, 0.0)\n",
        "    return x * rstd\n",
        "test_layer_norm.py -k 'constant_rows and 3e+38'",
    ),
    "the finish stops after its first tile of partial sums": Mutation(
        "kernels/rows.py",
        "    for start in range(0, partials, BLOCK_ROWS):\n",
        "    for start in range(0, BLOCK_ROWS, BLOCK_ROWS):\n",
        "test_layer_norm.py::test_many_partial_sums",
    ),
    # RMSNorm: what the kernels of LayerNorm do without the mean, and what stands around them
    "every row is centred": Mutation(
        "kernels/layer_norm.py",
        "CENTERED=centered,",
        "CENTERED=True,",
        "test_rms_norm.py::test_rows_beside_a_tile",
    ),
    "the mean square is the largest square": Mutation(
        "kernels/layer_norm.py",
        "        m2 = tl.sum(x * x, 1)\n",
        "        m2 = tl.max(x * x, 1)\n",
        "test_rms_norm.py::test_rows_beside_a_tile",
    ),
    "the mean square is that of the last chunk": Mutation(
        "kernels/layer_norm.py",
        "            m2 += tl.sum(x * x, 1)\n",
        "            m2 = tl.sum(x * x, 1)\n",
        "test_rms_norm.py::test_absent_parameters",
    ),
    "dx is that of centred rows": Mutation(
        "kernels/rows.py",
        "        if mean_ptr is not None:\n            c2 = ",
        "        if mean_ptr is None:\n            c2 = ",
        "test_rms_norm.py::test_rows_beside_a_tile",
    ),
    "the result has the input's dtype": Mutation(
        "kernels/layer_norm.py",
        "    y = torch.empty_like(x, dtype=out_dtype, memory_format=torch.contiguous_format)\n",
        "    y = torch.empty_like(x, memory_format=torch.contiguous_format)\n",
        "test_rms_norm.py::test_float32_from_16_bits",
    ),
    "eps of None is that of the input's dtype": Mutation(
        "normreg/functional.py",
        "        eps = torch.finfo(compute_dtype(input.dtype)).eps\n",
        "        eps = torch.finfo(input.dtype).eps\n",
        "test_rms_norm.py::test_eps_of_none_is_that_of_the_dtype_computed_in",
    ),
    "channels_last takes the kernel of rows": Mutation(
        "normreg/dispatch.py",
        "        if all(outer >= inner for outer",
        "        if all(outer == inner for outer",
        "test_dispatch.py -k channels_last",
    ),
    "the second derivative is that of centred rows": Mutation(
        "normreg/ops/gradient.py",
        "            c2 = 0.0 if mean is None else wdy.mean(normalized_dims, keepdim=True)\n",
        "            c2 = wdy.mean(normalized_dims, keepdim=True)\n",
        "test_gradient.py::test_both_backwards_are_one_function",
    ),
    "the second derivative centres rows": Mutation(
        "normreg/ops/rms_norm.py",
        "gradient.statistics(x, dims, ctx.eps, centered=False)",
        "gradient.statistics(x, dims, ctx.eps)",
        "test_gradient.py::test_both_backwards_are_one_function",
    ),
    # kernels/statistics.py
    "variance from raw squares": Mutation(
        "kernels/statistics.py",
        "    return mean, tl.sum(deviation * deviation, AXIS)\n",
        "    return mean, tl.sum(tl.where(mask, x * x, 0.0), AXIS) - count * mean * mean\n",
        "test_layer_norm.py::test_an_outlier_in_front_does_not_hurt",
    ),
    "padding in the variance": Mutation(
        "kernels/statistics.py",
        "    deviation = tl.where(mask, x - tl.expand_dims(mean, AXIS), 0.0)\n",
        "    deviation = x - tl.expand_dims(mean, AXIS)\n",
        "test_layer_norm.py -k 'agrees_with_torch and 17-'",
    ),
    "merging forgets the distance of the means": Mutation(
        "kernels/statistics.py",
        "    m2 = m2_a + m2_b + delta * delta * (count_a * count_b / count)\n",
        "    m2 = m2_a + m2_b\n",
        "test_batch_norm.py -k 'training_agrees and split and 9x4x33x32'",
    ),
    "partial results merged without their distances": Mutation(
        "kernels/statistics.py",
        "    return total, merged, tl.sum(m2 + count * deviation * deviation, 0)\n",
        "    return total, merged, tl.sum(m2, 0)\n",
        "test_batch_norm.py::test_many_partial_results",
    ),
    # kernels/channels.py
    "the last tile of a split is skipped": Mutation(
        "kernels/channels.py",
        "    return first, tl.minimum(first + tiles_per_split, tiles)\n",
        "    return first, tl.minimum(first + tiles_per_split - 1, tiles)\n",
        "test_batch_norm.py -k 'training_agrees and split'",
    ),
    "a split goes on past the last tile": Mutation(
        "kernels/channels.py",
        "    return first, tl.minimum(first + tiles_per_split, tiles)\n",
        "    return first, first + tiles_per_split\n",
        "test_batch_norm.py -k 'training_agrees and split and 5x17x7x7'",
    ),
    "positions are not masked": Mutation(
        "kernels/channels.py",
        "    mask &= first_spatial + position < spatial\n",
        "",
        "test_batch_norm.py -k 'training_agrees and split'",
    ),
    "samples are not masked": Mutation(
        "kernels/channels.py",
        "        mask &= first_sample + sample < samples\n",
        "",
        "test_batch_norm.py -k 'training_agrees and split and 70x6x7'",
    ),
    "channels are not masked": Mutation(
        "kernels/channels.py",
        "    return channel, channel < channels, (",
        "    return channel, channel >= 0, (",
        "test_batch_norm.py -k 'training_agrees and split and 5x17x7x7'",
    ),
    "sample offsets in 32 bits": Mutation(
        "kernels/channels.py",
        "    first_sample = (tile // tiles_per_sample).to(tl.int64) * BLOCK_SAMPLES\n",
        "    first_sample = tile // tiles_per_sample * BLOCK_SAMPLES\n",
        "test_far_offsets.py -k batch_norm_inference",
    ),
    # kernels/batch_norm.py
    "sums relative to an outlier": Mutation(
        "kernels/batch_norm_split.py",
        "        if tile == first_tile:",
        "        if tile < 0:",
        "test_batch_norm.py -k 'an_outlier_in_front and split'",
    ),
    "the mean is rounded": Mutation(
        "kernels/statistics.py",
        "    return x - high[:, None] - low[:, None]\n",
        "    return x - high[:, None]\n",
        "test_batch_norm.py::test_a_large_mean_costs_nothing",
    ),
    "running_var is biased": Mutation(
        "kernels/channels.py",
        "m2 / (count - 1)",
        "m2 / count",
        "test_batch_norm.py::test_running_statistics",
    ),
    "momentum the wrong way round": Mutation(
        "kernels/channels.py",
        "(1 - momentum) * load_channels(running_ptr, channel, mask) + momentum * value",
        "momentum * load_channels(running_ptr, channel, mask) + (1 - momentum) * value",
        "test_batch_norm.py::test_running_statistics",
    ),
    "batches are counted by every program": Mutation(
        "kernels/batch_norm_split.py",
        "        if tl.program_id(0) + tl.program_id(1) == 0:\n",
        "        if tl.program_id(0) == 0:\n",
        "test_batch_norm.py -k 'running_statistics and split'",
    ),
    "inference has the gradient of training": Mutation(
        "kernels/batch_norm_split.py",
        "dy, x, cut, None if training else dx, weight",
        "dy, x, cut, None, weight",
        "test_batch_norm.py -k 'gradient_of_any_subset and split and inference'",
    ),
    "dx loses the mean of dy": Mutation(
        "kernels/batch_norm_split.py",
        "(dz - (deviation * c1 + c2)) * scale",
        "(dz - deviation * c1) * scale",
        "test_batch_norm.py -k 'gradient_of_any_subset and split'",
    ),
    "dx loses the projection on x_hat": Mutation(
        "kernels/batch_norm_split.py",
        "(dz - (deviation * c1 + c2)) * scale",
        "(dz - c2) * scale",
        "test_batch_norm.py -k 'gradient_of_any_subset and split'",
    ),
    "dbias of a channel keeps only the last tile": Mutation(
        "kernels/batch_norm_split.py",
        "        dbias += dz\n",
        "        dbias = dz\n",
        "test_batch_norm.py -k 'training_agrees and split and 5x17x7x7'",
    ),
    "dweight loses rstd": Mutation(
        "kernels/batch_norm_split.py",
        "channels, BLOCK_SPLITS) * rstd\n",
        "channels, BLOCK_SPLITS)\n",
        "test_batch_norm.py -k 'gradient_of_any_subset and split'",
    ),
    "a second sweep ends at its first tile": Mutation(
        "kernels/batch_norm_split.py",
        "        tile = first_tile + last_tile - 1 - back\n        access",
        "        tile = first_tile + last_tile - back\n        access",
        "test_batch_norm.py -k 'training_agrees and split and 5x17x7x7'",
    ),
    "reversed programs write the channels of the first sweep": Mutation(
        "kernels/channels.py",
        "        block = tl.num_programs(0) - 1 - block\n",
        "        block = tl.num_programs(0) - 1\n",
        "test_batch_norm.py -k 'training_agrees and split and 3x65x8x8'",
    ),
    "dx of evaluation has no scale": Mutation(
        "kernels/batch_norm_split.py",
        "            store_tile(dx_ptr, access, dz * scale)\n",
        "            store_tile(dx_ptr, access, dz)\n",
        "test_batch_norm.py -k 'gradient_of_any_subset and split and inference'",
    ),
    # kernels/activations.py, and where it is used
    "slopes of relu6 beyond 6": Mutation(
        "kernels/activations.py",
        "        return ~((z <= 0.0) | (z >= 6.0))\n",
        "        return ~(z <= 0.0)\n",
        "test_batch_norm_act.py -k 'lines_meet and relu6'",
    ),
    "bits in another order than they are read": Mutation(
        "kernels/channels.py",
        "        place = tl.arange(0, A_BYTE)[None, None, :]\n",
        "        place = A_BYTE - 1 - tl.arange(0, A_BYTE)[None, None, :]\n",
        "test_batch_norm_act.py -k 'bits_of_every_layout and held'",
    ),
    "the backward forgets the residual in z": Mutation(
        "kernels/batch_norm_split.py",
        "            z += load_tile(residual_ptr, access, COMPUTE_DTYPE)\n",
        "            pass\n",
        "test_batch_norm_act.py -k 'agrees_with_torch and silu'",
    ),
    "dz where there is no element": Mutation(
        "kernels/batch_norm_split.py",
        "        dz = tl.where(access[2], activation_backward(dz, z, negative_slope, ACT), 0.0)\n",
        "        dz = activation_backward(dz, z, negative_slope, ACT)\n",
        "test_batch_norm_act.py -k constant_channels",
    ),
    "the residual's gradient in splits is that of y": Mutation(
        "kernels/batch_norm_split.py",
        "            store_tile(dresidual_ptr, access, dz)\n",
        "            store_tile(dresidual_ptr, access, load_tile(dy_ptr, access, COMPUTE_DTYPE))\n",
        "test_batch_norm_act.py -k 'gradient_of_any_subset and split'",
    ),
    "the activation is applied twice to dy": Mutation(
        "kernels/batch_norm_split.py",
        "        dy, fused = dresidual, of_dz(fused)\n",
        "        dy, fused = dresidual, fused\n",
        "test_batch_norm_act.py -k 'agrees_with_torch and split and silu'",
    ),
    "a bad loader's statistics stay": Mutation(
        "normreg/running_statistics.py",
        "        _put_back(before)\n",
        "        pass\n",
        "test_running_statistics.py -k bad_loader",
    ),
    # kernels/batch_norm_held.py
    "held sums relative to an outlier": Mutation(
        "kernels/batch_norm_held.py",
        "    shift = recentred(shift, x, mask, positions.to(COMPUTE_DTYPE))\n",
        "",
        "test_batch_norm.py -k 'an_outlier_in_front and held'",
    ),
    "every program of held channels counts the batch": Mutation(
        "kernels/batch_norm_held.py",
        "        if tl.program_id(0) == 0:\n",
        "        if tl.program_id(0) >= 0:\n",
        "test_batch_norm.py -k 'running_statistics and held'",
    ),
    "a cumulative average in one launch": Mutation(
        "kernels/batch_norm.py",
        "    if momentum is not None:\n        held =",
        "    momentum = momentum or 0.1\n    if True:\n        held =",
        "test_batch_norm.py -k 'running_statistics and held and None'",
    ),
    "inference has the gradient of training in held channels": Mutation(
        "kernels/batch_norm_held.py",
        "        if TRAINING:\n",
        "        if True:\n",
        "test_batch_norm.py -k 'gradient_of_any_subset and held and inference'",
    ),
    "dx of held channels loses the mean of dy": Mutation(
        "kernels/batch_norm_held.py",
        "            dx -= deviation * c1 + c2\n",
        "            dx -= deviation * c1\n",
        "test_batch_norm.py -k 'gradient_of_any_subset and held'",
    ),
    "dx of held channels loses the projection on x_hat": Mutation(
        "kernels/batch_norm_held.py",
        "            dx -= deviation * c1 + c2\n",
        "            dx -= c2\n",
        "test_batch_norm.py -k 'gradient_of_any_subset and held'",
    ),
    "dweight of held channels loses rstd": Mutation(
        "kernels/batch_norm_held.py",
        "tl.sum(dz * deviation, 1).to(tl.float64) * rstd\n",
        "tl.sum(dz * deviation, 1).to(tl.float64)\n",
        "test_batch_norm.py -k 'gradient_of_any_subset and held'",
    ),
    # kernels/group_norm.py, kernels/group_norm_split.py, kernels/instance_norm.py
    "rows of groups are not masked": Mutation(
        "kernels/group_norm.py",
        "    row_mask = (first_sample + sample < samples) & (first_group + group < groups)\n",
        "    row_mask = (first_sample + sample < samples) & (first_group + group >= 0)\n",
        "test_group_norm.py -k 'agrees_with_torch and 2x17x7x7'",
    ),
    "channels of a group are not masked": Mutation(
        "kernels/group_norm.py",
        "(channel < channels) & (position < spatial)\n",
        "(channel >= 0) & (position < spatial)\n",
        "test_group_norm.py -k 'agrees_with_torch and 3x10x205'",
    ),
    "every group has the first one's parameters": Mutation(
        "kernels/group_norm.py",
        "    value = tl.load(ptr + group[:, None] * channels + channel, mask=mask, other=0.0)\n",
        "    value = tl.load(ptr + channel + 0 * group[:, None], mask=mask, other=0.0)\n",
        "test_group_norm.py::test_absent_parameters",
    ),
    "the means of a group are of dy, not of wdy": Mutation(
        "kernels/group_norm.py",
        "                tile_dbias *= tl.reshape(weight, tile_dbias.shape)\n",
        "",
        "test_group_norm.py::test_gradient_of_any_subset",
    ),
    "dweight of a group keeps only the last samples": Mutation(
        "kernels/group_norm.py",
        "        dweight += tile_dweight\n",
        "        dweight = tile_dweight\n",
        "test_group_norm.py::test_samples_beside_a_tile",
    ),
    "offsets of groups in 32 bits": Mutation(
        "kernels/group_norm.py",
        "    first_row = first_sample * groups + first_group\n",
        "    first_row = (first_sample * groups + first_group).to(tl.int32)\n",
        "test_far_offsets.py -k group_norm_forward",
    ),
    "split groups have the parameters of the wrong channel": Mutation(
        "kernels/group_norm_split.py",
        "bias_ptr, None, None, mean, rstd, row % channels, row_mask,\n",
        "bias_ptr, None, None, mean, rstd, row % group_channels, row_mask,\n",
        "test_group_norm.py::test_absent_parameters",
    ),
    "a split group has the moments of its first splits": Mutation(
        "kernels/channels.py",
        "    for first in range(0, splits, BLOCK_SPLITS):\n        counts",
        "    for first in range(0, 1, BLOCK_SPLITS):\n        counts",
        "test_group_norm.py::test_many_splits",
    ),
    "the mean of a split group is saved absolute": Mutation(
        "kernels/group_norm_split.py",
        "            tl.store(mean_ptr + group, (mean - shift).to(COMPUTE_DTYPE), mask=first)\n",
        "            tl.store(mean_ptr + group, mean.to(COMPUTE_DTYPE), mask=first)\n",
        "test_group_norm.py::test_large_means",
    ),
    "only the last channels of a split group are merged": Mutation(
        "kernels/group_norm_split.py",
        "        c1 += dweight * weight\n",
        "        c1 = dweight * weight\n",
        "test_group_norm.py -k split_agree",
    ),
    "running variances are biased": Mutation(
        "kernels/instance_norm.py",
        " / samples * (spatial.to(tl.float64) / (spatial - 1))\n",
        " / samples\n",
        "test_instance_norm.py -k unbiased",
    ),
    "running statistics of the last samples alone": Mutation(
        "kernels/instance_norm.py",
        "        var += tl.load(",
        "        var = tl.load(",
        "test_instance_norm.py -k 'test_running_statistics and 34'",
    ),
    "groups of the second derivative are those of one channel": Mutation(
        "normreg/ops/group_norm.py",
        "    shape = (x.shape[0], groups, x.shape[1] // groups, -1)\n",
        "    shape = (x.shape[0], x.shape[1], 1, -1)\n",
        "test_gradient.py -k 'one_function and group_norm'",
    ),
    # kernels/dropout.py, kernels/random.py
    "the mask is repeated after 2^24 elements": Mutation(
        "kernels/random.py",
        "    low = (call & 0xFFFFFFFF).to(tl.uint32)\n",
        "    low = (call & 0x3FFFFF).to(tl.uint32)\n",
        "test_dropout.py::test_nothing_is_repeated",
    ),
    "the tail is not masked": Mutation(
        "kernels/dropout.py",
        "    mask = offsets < elements\n",
        "    mask = offsets >= 0\n",
        "test_dropout.py -k share_the_mask",
    ),
    "dropped by multiplication": Mutation(
        "kernels/dropout.py",
        "    return tl.where(keep, y, tl.full([], dropped, x.dtype))\n",
        "    return y * keep.to(x.dtype) + tl.full([], dropped, x.dtype) * (1 - keep.to(x.dtype))\n",
        "test_dropout.py -k inf",
    ),
    "every program draws the same bits": Mutation(
        "kernels/dropout.py",
        "keep_mask(seed, first * CALLS + tl.arange(0, CALLS), keep_threshold, BITS)",
        "keep_mask(seed, tl.arange(0, CALLS).to(tl.int64), keep_threshold, BITS)",
        "test_dropout.py -k 'tiles_do_not or neighbours'",
    ),
    "the scale is that of the p asked for": Mutation(
        "kernels/dropout.py",
        "constants(keep_threshold / 2**bits) if keep_threshold",
        "constants(1 - p) if keep_threshold",
        "test_dropout.py -k scale_is_exact",
    ),
    "counters of 32 bits": Mutation(
        "kernels/random.py",
        "    high = (call >> 32).to(tl.uint32)\n",
        "    high = zero\n",
        "test_dropout.py -k far",
    ),
    "half of the bits used twice": Mutation(
        "kernels/random.py",
        "        fields = tl.interleave(fields & 0xFFFF, fields >> 16)\n",
        "        fields = tl.interleave(fields & 0xFFFF, fields & 0xFFFF)\n",
        "test_dropout.py -k 'documented or neighbours'",
    ),
    "dropout is shifted": Mutation(
        "kernels/dropout.py",
        " - tl.full([], shift, x.dtype)  #",
        "  #",
        "test_dropout_family.py -k 'agrees and alpha_dropout-'",
    ),
    "the alpha value is dropped too": Mutation(
        "kernels/dropout.py",
        "    return tl.where(keep, y, tl.full([], dropped, x.dtype))\n",
        "    return tl.where(keep, y, 0.0)\n",
        "test_dropout_family.py -k 'agrees and alpha_dropout-'",
    ),
    "alpha's constants are those of the p asked for": Mutation(
        "kernels/dropout.py",
        "    return a, a * ALPHA * (1 - keep), a * ALPHA * keep\n",
        "    return a, a * ALPHA * (1 - round(keep, 3)), a * ALPHA * keep\n",
        "test_dropout_family.py -k constants_are_exact",
    ),
    "alpha's gradient is shifted": Mutation(
        "kernels/dropout.py",
        " if linear else ",
        " if linear is None else ",
        "test_dropout_family.py -k 'agrees and alpha_dropout-'",
    ),
    "minus zero is lost": Mutation(
        "kernels/dropout.py",
        "scale, x.dtype) - tl.full",
        "scale, x.dtype) + tl.full",
        "test_dropout_family.py -k sign_of_zero",
    ),
    "groups are not masked": Mutation(
        "kernels/dropout.py",
        "    mask = (group < groups)[:, None] & (position < positions)[None, :]\n",
        "    mask = (group >= 0)[:, None] & (position < positions)[None, :]\n",
        "test_dropout_family.py -k every_size",
    ),
    "positions of groups are not masked": Mutation(
        "kernels/dropout.py",
        "    mask = (group < groups)[:, None] & (position < positions)[None, :]\n",
        "    mask = (group < groups)[:, None] & (position >= 0)[None, :]\n",
        "test_dropout_family.py -k every_size",
    ),
    "every sample of a channels_last tensor has one mask": Mutation(
        "kernels/dropout.py",
        "keep_at(seed, sample * groups + group, keep_threshold)",
        "keep_at(seed, group, keep_threshold)",
        "test_dropout_family.py -k test_channels_last",
    ),
    "every block of groups has one mask": Mutation(
        "kernels/dropout.py",
        "keep_at(seed, sample * groups + group, keep_threshold)",
        "keep_at(seed, sample * groups + group % BLOCK_GROUPS, keep_threshold)",
        "test_dropout_family.py -k any_number",
    ),
    "group offsets in 32 bits": Mutation(
        "kernels/dropout.py",
        "    offsets += sample * groups * positions\n",
        "    offsets = (offsets + sample * groups * positions).to(tl.int32)\n",
        "test_far_offsets.py -k channels",
    ),
    "dropped values are read into the result": Mutation(
        "kernels/dropout.py",
        "    y = select(x.to(COMPUTE_DTYPE), keep, scale, shift, dropped)\n",
        "    y = select(x.to(COMPUTE_DTYPE), keep | (x != x), scale, shift, dropped)\n",
        "test_dropout_family.py -k inf",
    ),
    "one field of each call for all": Mutation(
        "kernels/random.py",
        "    field = index & 3\n",
        "    field = index & 0\n",
        "test_dropout_family.py -k neighbouring",
    ),
    "a seed in memory is ignored": Mutation(
        "kernels/random.py",
        "        seed += tl.load(seed_ptr)\n",
        "        seed += 0\n",
        "test_dropout.py -k seed_in_memory",
    ),
    "blocks of columns on the short axis of a grid": Mutation(
        "kernels/bias_act_dropout.py",
        "        bias_act_dropout_backward_kernel, (col_blocks, programs), device",
        "        bias_act_dropout_backward_kernel, (programs, col_blocks), device",
        "test_launch.py -k no_grid",
    ),
    "cuDNN's RNNs draw their dropout's state anew": Mutation(
        "normreg/ops/seed.py",
        '    return generator.graphsafe_get_state() if generator.device.type == "cuda" else generator\n',
        "    return generator\n",
        "test_dropout.py -k generator",
    ),
    # normreg/ops
    "the second derivative loses c1": Mutation(
        "normreg/ops/gradient.py",
        "            dx = wdy - x_hat * c1 - c2\n",
        "            dx = wdy - c2\n",
        "test_gradient.py::test_both_backwards_are_one_function",
    ),
    "second derivatives take the kernel": Mutation(
        "normreg/ops/layer_norm.py",
        "        if gradient.wants_formula(dy):\n",
        "        if gradient.wants_formula(dy) and dy is None:\n",
        "test_gradient.py::test_second_order_where_the_incoming_gradient_needs_none",
    ),
    "dropout's backward draws a new mask": Mutation(
        "normreg/ops/dropout.py",
        "DropoutFunction.apply(dy, seed_, *ctx.rule, True)",
        "DropoutFunction.apply(dy, seed.draw(dy.device), *ctx.rule, True)",
        "test_dropout.py -k share_the_mask",
    ),
    "memory is taken for logical order": Mutation(
        "normreg/ops/dropout.py",
        "    if leading is None or x.dim() not in (4, 5):\n        return False\n",
        "    if x.dim() not in (4, 5):\n        return False\n",
        "test_dropout_family.py -k layout_changes",
    ),
    "torch's operator ignores the generator": Mutation(
        "normreg/ops/dropout.py",
        "    noise.bernoulli_(keep, generator=generator)\n",
        "    noise.bernoulli_(keep)\n",
        "test_dropout_family.py -k generator_in_torchs",
    ),
    "the seed ignores the generator": Mutation(
        "normreg/ops/dropout.py",
        "    arguments = (x, seed.draw(x.device, generator), *rule, False)\n",
        "    arguments = (x, id(x), *rule, False)\n",
        "test_dropout.py -k manual_seed",
    ),
    "autograd does not see what is kept": Mutation(
        "normreg/ops/gradient.py",
        "    ctx.save_for_backward(x, weight, *statistics)\n",
        "    ctx.save_for_backward(x, weight, *statistics)\n    ctx.kept = statistics\n",
        "test_saved_bytes.py -k out_of_sight",
    ),
    # the L2 penalty
    "the penalty skips the tail of a chunk": Mutation(
        "kernels/l2_penalty.py",
        "    return tl.sum(squares + w * w, 0).to(tl.float64)\n",
        "    return tl.sum(squares, 0).to(tl.float64)\n",
        "test_l2_penalty.py -k 'every_dtype and float32'",
    ),
    "the penalty reads past the end of a tensor": Mutation(
        "kernels/l2_penalty.py",
        "    w = tl.load(w_ptr + rest, mask=rest < elements, other=0.0).to(COMPUTE_DTYPE)\n    return",
        "    w = tl.load(w_ptr + rest, mask=rest <= elements, other=0.0).to(COMPUTE_DTYPE)\n    return",
        "test_l2_penalty.py -k 'every_dtype and float32'",
    ),
    "the penalty takes a chunk for another tensor's": Mutation(
        "kernels/l2_penalty.py",
        "(mask & (first <= chunk))",
        "(mask & (first < chunk))",
        "test_l2_penalty.py -k 'every_dtype and float32'",
    ),
    "the penalty searches the last tensors alone": Mutation(
        "kernels/l2_penalty.py",
        "        begun += tl.sum(",
        "        begun = tl.sum(",
        "test_l2_penalty.py -k searched_at_a_time",
    ),
    "the penalty merges the last sums alone": Mutation(
        "kernels/l2_penalty.py",
        "        total += tl.load(partial_ptr",
        "        total = tl.load(partial_ptr",
        "test_l2_penalty.py -k sums_than_are_merged",
    ),
    "the penalty is not halved": Mutation(
        "kernels/l2_penalty.py",
        "    y = 0.5 * weight_decay * tl.sum(total, 0)\n",
        "    y = weight_decay * tl.sum(total, 0)\n",
        "test_l2_penalty.py -k derivatives",
    ),
    "the penalty's gradient ignores dy": Mutation(
        "kernels/l2_penalty.py",
        "    scale = weight_decay * tl.load(dy_ptr).to(tl.float64)\n",
        "    scale = weight_decay + 0 * tl.load(dy_ptr).to(tl.float64)\n",
        "test_l2_penalty.py -k 'every_dtype and float32'",
    ),
    "the penalty takes every address for an aligned one": Mutation(
        "kernels/l2_penalty.py",
        "ALIGNED=all(row[0] % 16 == 0 for row in rows)",
        "ALIGNED=True",
        "test_l2_penalty.py -k alignment",
    ),
    "the penalty counts the elements beside a slice's": Mutation(
        "kernels/l2_penalty.py",
        "    return tensor if filled else tensor.contiguous()\n",
        "    return tensor\n",
        "test_l2_penalty.py::test_layouts",
    ),
    "the penalty's gradient has no gradient": Mutation(
        "normreg/ops/l2_penalty.py",
        "        if gradient.wants_formula(dy) or ",
        "        if gradient.is_batched(dy) or ",
        "test_l2_penalty.py -k second_derivatives",
    ),
    # normreg/parameter_groups.py, normreg/init.py
    "a tied parameter has one owner": Mutation(
        "normreg/parameter_groups.py",
        "        parameters[id(parameter)] = parameter\n",
        "        if id(parameter) in parameters:\n            continue\n"
        "        parameters[id(parameter)] = parameter\n",
        "test_parameter_groups.py -k 'tied and without_decay'",
    ),
    "the norm of a shortcut is set to 0": Mutation(
        "normreg/init.py",
        " not in shortcuts\n",
        " != shortcuts\n",
        "test_init.py::test_zero_residual",
    ),
    # normreg/nn
    "batches are counted that are not tracked": Mutation(
        "normreg/nn/batch_norm.py",
        "    update = layer.training and layer.track_running_stats\n",
        "    update = layer.training\n",
        "test_batch_norm.py::test_truth_table",
    ),
    "the layer forgets eps": Mutation(
        "normreg/nn/rms_norm.py",
        "self.weight, self.eps)",
        "self.weight)",
        "test_rms_norm.py::test_the_layer_has_its_eps",
    ),
    # normreg/explanation.py
    "explain leaves the buffers that the run has changed": Mutation(
        "normreg/unchanged.py",
        "                module._buffers[name] = None if buffer is None else copies.of(buffer)\n",
        "                module._buffers[name] = buffer\n",
        "test_explain.py -k nothing_is_left",
    ),
    "explain leaves the attributes that the run has changed": Mutation(
        "normreg/unchanged.py",
        "            here.update(before)\n",
        "",
        "test_explain.py -k nothing_is_left",
    ),
    "explain uses up random numbers": Mutation(
        "normreg/unchanged.py",
        "        stack.enter_context(torch.random.fork_rng(devices))\n",
        "",
        "test_explain.py -k nothing_is_left",
    ),
    "explain lets the model change its input": Mutation(
        "normreg/explanation.py",
        "        inputs, options = tree_map_only(torch.Tensor, copies.of, (inputs, options))\n",
        "",
        "test_explain.py -k nothing_is_left",
    ),
    "explain's copies lie otherwise in memory": Mutation(
        "normreg/unchanged.py",
        "torch.empty_strided(tensor.shape, tensor.stride(), **options)",
        "torch.empty(tensor.shape, **options)",
        "test_explain.py -k strides",
    ),
    "diagnose leaves out eps": Mutation(
        "normreg/measurement.py",
        "(var.double() + module.eps)",
        "var.double()",
        "test_diagnose.py -k what_its_kernel_kept",
    ),
    "explain takes every call for one of the kernel": Mutation(
        "normreg/explanation.py",
        '"kernel" if reason is None else "torch"',
        '"kernel"',
        "test_explain.py -k reason",
    ),
    "explain listens to other threads": Mutation(
        "normreg/explanation.py",
        "        if threading.get_ident() == self.thread:\n",
        "        if self.thread:\n",
        "test_explain.py -k threads",
    ),
    "explain goes on listening": Mutation(
        "normreg/dispatch.py",
        "        here.update(decisions)\n",
        "        pass\n",
        "test_explain.py -k every_decision",
    ),
    # dropout, sum and norm
    "every row has the first one's mask": Mutation(
        "kernels/random.py",
        "    call = row[:, None] * tl.cdiv(cols, FIELDS) + first_col // FIELDS\n",
        "    call = row[:, None] * 0 + first_col // FIELDS\n",
        "test_dropout_add_norm.py -k 'one_mask and 1024'",
    ),
    "rows of a sample decide by themselves": Mutation(
        "kernels/branch.py",
        "keep_at(seed, row // rows_per_sample, keep_threshold)",
        "keep_at(seed, row, keep_threshold)",
        "test_dropout_add.py -k of_rows_with_layer_scale",
    ),
    "the sum is not shifted": Mutation(
        "kernels/dropout_add_norm.py",
        "        z -= tl.sum(tl.where((col == 0)[None, :], z, 0.0), 1)[:, None]\n",
        "",
        "test_dropout_add_norm.py -k large_mean",
    ),
    "the sum's parts are not shifted": Mutation(
        "kernels/dropout_add_norm_parts.py",
        "            shift = tl.sum(tl.where(tl.arange(0, BLOCK_COLS) == 0, part.to(COMPUTE_DTYPE), 0.0))\n",
        "            shift = tl.zeros([], COMPUTE_DTYPE)\n",
        "test_dropout_add_norm.py -k 'large_mean and 760'",
    ),
    "every part has the first one's mask": Mutation(
        "kernels/dropout_add_norm_parts.py",
        "rows_per_sample, cols, i * BLOCK_COLS,\n",
        "rows_per_sample, cols, 0,\n",
        "test_dropout_add_norm.py -k 'one_mask and 760'",
    ),
    "every part has the first one's residual": Mutation(
        "kernels/dropout_add_norm_parts.py",
        "load_part(residual_ptr + base, i, cols,",
        "load_part(residual_ptr + base, 0, cols,",
        "test_dropout_add_norm.py -k 'agrees_with_torch and 1000'",
    ),
    "the sum's rows of parts in 32 bits": Mutation(
        "kernels/dropout_add_norm_parts.py",
        "    row = tl.program_id(0).to(tl.int64)\n",
        "    row = tl.program_id(0)\n",
        "test_far_offsets.py -k dropout_add_norm",
    ),
    "the gradient of the sum from elsewhere is lost": Mutation(
        "kernels/dropout_add_norm.py",
        "            dz += tl.load(dz_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)\n",
        "            pass\n",
        "test_dropout_add_norm.py -k 'either_result and 40'",
    ),
    "a wide branch's gradient has the first columns' mask": Mutation(
        "kernels/dropout_add_norm.py",
        "row_mask, rows_per_sample, cols, first_col,\n",
        "row_mask, rows_per_sample, cols, 0,\n",
        "test_dropout_add_norm.py -k 'one_mask and 200 and float32'",
    ),
    "the branch's gradient forgets its mask": Mutation(
        "kernels/dropout_add_norm.py",
        "            dx = branch(dz, keep, factor)\n",
        "            dx = dz * factor\n",
        "test_dropout_add_norm.py -k 'agrees_with_torch and float32'",
    ),
    "dlayer_scale keeps only the last tile": Mutation(
        "kernels/dropout_add_norm.py",
        "            dlayer_scale += dz * branch(x, keep, factor)\n",
        "            dlayer_scale = dz * branch(x, keep, factor)\n",
        "test_dropout_add_norm.py -k 'test_scales and 0.4'",
    ),
    "a scaled branch has the residual's gradient": Mutation(
        "normreg/ops/dropout_add_norm.py",
        "bits == 0 and layer_scale is None and row_scale is None",
        "bits == 0 and layer_scale is None",
        "test_dropout_add_norm.py -k 'test_scales and 0.0'",
    ),
    "the branch is kept where nobody needs it": Mutation(
        "normreg/ops/dropout_add_norm.py",
        "        x = None if layer_scale is None else x\n",
        "",
        "test_dropout_add_norm.py -k what_is_kept",
    ),
    "rows of channels-last are scaled in the order of memory": Mutation(
        "normreg/ops/dropout_add.py",
        "    of_samples = (shared or bits == 0) and (row_scale is None or row_scale.dim() == 1)\n",
        "    of_samples = shared or bits == 0\n",
        "test_dropout_add.py -k scales_of_channels_last",
    ),
    "every call drops the same": Mutation(
        "normreg/ops/dropout_add.py",
        "    return seed.draw(x.device, generator) if bits else None\n",
        "    return 5 if bits else None\n",
        "test_dropout_add_norm.py -k follows_the_generator",
    ),
    "the columns of one row are counted in 32 bits": Mutation(
        "kernels/dropout_add.py",
        "    cols = cols.to(tl.int64) * VECTOR  # one row may be all of a tensor\n"
        "    seed = load_seed(seed_ptr, seed)\n    tile, col_blocks",
        "    cols = cols * VECTOR\n    seed = load_seed(seed_ptr, seed)\n    tile, col_blocks",
        "test_far_offsets.py -k 31[dropout_add]",
    ),
    "dlayer_scale of dropout_add keeps only the last tile": Mutation(
        "kernels/dropout_add.py",
        "        dlayer_scale += dz",
        "        dlayer_scale = dz",
        "test_dropout_add.py -k 'test_scales and 2100'",
    ),
    "dbias of an activation keeps only the last tile": Mutation(
        "kernels/bias_act_dropout.py",
        "        dbias += dx\n",
        "        dbias = dx\n",
        "test_dropout_add.py -k 'any_shape and 4100'",
    ),
    "the activation's derivative forgets the bias": Mutation(
        "kernels/bias_act_dropout.py",
        "            z += load_parameter(bias_ptr, col, cols, COMPUTE_DTYPE)\n        dy =",
        "            pass\n        dy =",
        "test_dropout_add.py -k 'any_shape and 4100'",
    ),
    # the operators of torch.compile
    "torch.compile is given torch's operator": Mutation(
        "normreg/dispatch.py",
        "        if torch.compiler._is_exporting_flag:\n",
        "        if True:\n",
        "test_compile.py -k 'test_layers and LayerNorm-train'",
    ),
    "an exported program needs normreg": Mutation(
        "normreg/dispatch.py",
        "        if torch.compiler._is_exporting_flag:\n",
        "        if torch.jit.is_tracing():\n",
        "test_compile.py -k 'export and strict'",
    ),
    "the schema hides that running_var is updated": Mutation(
        "normreg/ops/batch_norm.py",
        "Tensor(b!)? running_var",
        "Tensor? running_var",
        "test_operators.py -k 'opcheck and batch_norm'",
    ),
    "a fake result is contiguous": Mutation(
        "normreg/ops/batch_norm.py",
        "    dx = torch.empty_like(dense(x)) if",
        "    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if",
        "test_operators.py -k 'fakes and channels_last'",
    ),
    "a promoted result is not": Mutation(
        "normreg/foreign.py",
        "all(tensor is None or tensor.dtype == x.dtype for tensor in tensors)",
        "True",
        "test_foreign.py::test_a_result_that_is_promoted_stays_so",
    ),
    "a pickled layer of another library forgets its class": Mutation(
        "normreg/foreign.py",
        "return _new, (type(self).original,), *state",
        "return _new, (type(self),), *state",
        "test_foreign.py::test_copies",
    ),
    "a launch forgets that addresses were aligned": Mutation(
        "kernels/launch.py",
        "(t.dtype, t.data_ptr() % 16 == 0)",
        "t.dtype",
        "test_launch.py::test_a_launch_of_a_kept_plan_is_tritons_own",
    ),
    "a fake result has the input's dtype": Mutation(
        "normreg/ops/layer_norm.py",
        "    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)\n",
        "    y = torch.empty_like(x)\n",
        "test_operators.py -k 'fakes and float32'",
    ),
    "the operator has no derivative": Mutation(
        "normreg/ops/rms_norm.py",
        "    _forward, fake_forward, RMSNormFunction,\n",
        "    _forward, fake_forward,\n",
        "test_operators.py -k 'opcheck and rms_norm'",
    ),
    "a traced backward launches kernels": Mutation(
        "normreg/ops/operator.py",
        "    return type(dy) is not torch.Tensor or torch.compiler.is_compiling()\n",
        "    return False\n",
        "test_compile.py -k 'test_layers and LayerNorm-train'",
    ),
    "the seed is a constant of the graph": Mutation(
        "normreg/ops/dropout.py",
        "        y = OPERATOR(*arguments)\n",
        "        y = OPERATOR(x, torch.full((), 5, device=x.device), *rule, False)\n",
        "test_compile.py -k masks_follow",
    ),
    "dropout in place leaves its input": Mutation(
        "normreg/ops/dropout.py",
        "        return x.copy_(y) if inplace else y\n",
        "        return y\n",
        "test_compile.py -k leaf",
    ),
    "a compiled graph counts no batches": Mutation(
        "normreg/ops/batch_norm.py",
        "        run, function, traced = _training, BatchNormFunction, OPERATOR\n",
        "        if torch.compiler.is_compiling():\n"
        "            arguments = (*arguments[:5], None, *arguments[6:])\n"
        "        run, function, traced = _training, BatchNormFunction, OPERATOR\n",
        "test_compile.py -k 'test_layers and BatchNorm1d-train'",
    ),
    "a compiled graph leaves InstanceNorm's running statistics": Mutation(
        "normreg/ops/instance_norm.py",
        "        OPERATOR_UPDATE_RUNNING(x.detach(), mean, var, *running, momentum)\n",
        "        pass\n",
        "test_compile.py -k 'test_layers and InstanceNorm2d and train'",
    ),
    "the fake of GroupNorm's statistics is flat": Mutation(
        "normreg/ops/group_norm.py",
        "x.new_empty((x.shape[0], groups), ",
        "x.new_empty(x.shape[0] * groups, ",
        "test_operators.py -k 'fakes and group_norm'",
    ),
    "timm's activation is fused though a hook sits on it": Mutation(
        "normreg/foreign.py",
        "    if act is None or called or has_global_hooks() or ",
        "    if act is None or has_global_hooks() or ",
        "test_foreign.py -k 'timms_activation and hook'",
    ),
    "a forward that a tool put into the class is lost": Mutation(
        "normreg/convert.py",
        "    if _library(cls.forward) not in map(_library, cls.__mro__):\n",
        "    if False:\n",
        "test_convert.py -k tool_replaced",
    ),
    "restore leaves what another tool has touched": Mutation(
        "normreg/convert.py",
        "        elif reason := why_left(name, module):\n",
        "        elif reason := _why_changed_by_others(module) or why_left(name, module):\n",
        "test_foreign.py -k restored_whatever",
    ),
    "shared parameters count twice": Mutation(
        "normreg/convert.py",
        "for p in {*parameters} if",
        "for p in [*parameters] if",
        "test_convert.py -k share_of",
    ),
    # normreg/fusion
    "whatever a module returns is new memory": Mutation(
        "normreg/fusion/patterns.py",
        "self.becomes(module) in ALLOCATING and why_not",
        "module is not None and why_not",
        "test_fuse.py -k 'left_alone and passes'",
    ),
    "a sum in place is another value": Mutation(
        "normreg/fusion/tracing.py",
        '    setattr(_Proxy, f"__{_name}__", _record(_name))\n',
        "    pass\n",
        "test_fuse.py -k 'left_alone and adds'",
    ),
    "what is used elsewhere is fused": Mutation(
        "normreg/fusion/patterns.py",
        "            if len(step.node.users) > 1 and not (",
        "            if len(step.node.users) > 9 and not (",
        "test_fuse.py -k 'left_alone and elsewhere'",
    ),
    "what may be overwritten is read later": Mutation(
        "normreg/fusion/patterns.py",
        "        for node in between if kept else between + calls[last + 1 :]:\n",
        "        for node in ():\n",
        "test_fuse.py -k 'left_alone and between'",
    ),
    "what the backward needs is overwritten later": Mutation(
        "normreg/fusion/patterns.py",
        "        for node in between if kept else between + calls[last + 1 :]:\n",
        "        for node in between:\n",
        "test_fuse.py -k 'left_alone and later'",
    ),
    "calls of one module change places": Mutation(
        "normreg/fusion/patterns.py",
        '                return f"{self.name(node)} is called in between, too"\n',
        "                pass\n",
        "test_fuse.py -k 'left_alone and called'",
    ),
    "a hook put on later is not called": Mutation(
        "normreg/fusion/blocks.py",
        "            and why_not_bypassed(module) is None\n",
        "",
        "test_fuse.py -k 'changes_afterwards and hook'",
    ),
    "hooks of all modules are not called": Mutation(
        "normreg/fusion/blocks.py",
        "        return not has_global_hooks() and all(",
        "        return all(",
        "test_fuse.py -k hooks_of_all",
    ),
    "a setting changed later is not seen": Mutation(
        "normreg/fusion/blocks.py",
        "            if attributes.get(name, self) != value:\n",
        "            if name not in attributes:\n",
        "test_fuse.py -k settings",
    ),
    "an activation changed later is not seen": Mutation(
        "normreg/fusion/blocks.py",
        "            and (self.act is None or activation_of(module) == self.act)\n",
        "",
        "test_fuse.py -k settings",
    ),
    "arguments that decide are passed on": Mutation(
        "normreg/fusion/tracing.py",
        "    return general if _shape(general, signature.defaults) == _shape(graph) else None\n",
        "    return general\n",
        "test_fuse.py -k decide",
    ),
    "arguments by position are those by name": Mutation(
        "normreg/fusion/blocks.py",
        "len(order) if order == positional[: len(order)] else None",
        "len(order)",
        "test_fuse.py -k passed_on",
    ),
    "a forward may draw random numbers": Mutation(
        "normreg/fusion/tracing.py",
        '            raise Untraceable("its forward draws random numbers")\n',
        "            pass\n",
        "test_fuse.py -k 'forwards_left and random'",
    ),
    "autocast is not asked for": Mutation(
        "normreg/fusion/tracing.py",
        "            torch.set_autocast_enabled(device, enabled)\n",
        "            pass\n",
        "test_fuse.py -k 'forwards_left and autocast'",
    ),
    "a broadcast residual is read beyond its end": Mutation(
        "normreg/fusion/blocks.py",
        "x.shape == others[0].shape",
        "True",
        "test_fuse.py -k broadcast",
    ),
    "dropout behind an activation never ends": Mutation(
        "normreg/fusion/steps.py",
        'f"{node.target}.training"',
        "True",
        "test_fuse.py -k test_dropout_drops",
    ),
    # what ranks do together
    "ranks merge no distance of their means": Mutation(
        "kernels/sync_batch_norm.py",
        "merge_moments(count, mean, m2, tl.sum(counts, 0), block_mean, block_m2)\n",
        "(count + tl.sum(counts, 0), mean + block_mean, m2 + tl.sum(m2s, 0))\n",
        "test_sync_batch_norm.py -k 'test_split_batches and four'",
    ),
    "the means of ranks are rounded": Mutation(
        "kernels/sync_batch_norm.py",
        "    tl.store(ptr + offset + distance, low, mask=mask)\n",
        "    tl.store(ptr + offset + distance, low * 0, mask=mask)\n",
        "test_sync_batch_norm.py -k 'test_split_batches and statistics and not four'",
    ),
    "dx of a rank is that of its own sums": Mutation(
        "normreg/ops/sync_batch_norm.py",
        "        sums = collectives.all_reduce(sums, group)\n",
        "        pass\n",
        "test_sync_batch_norm.py -k 'test_split_batches and four'",
    ),
    "ranks do not compare their layers": Mutation(
        "normreg/nn/sync_batch_norm.py",
        "        check_ranks_agree(input, group)\n",
        "        pass\n",
        "test_sync_batch_norm.py -k 'test_split_batches and errors'",
    ),
    "shards of one seed drop the same": Mutation(
        "normreg/ops/seed.py",
        "    return _mix(_mix(seed) ^ part) >> 1\n",
        "    return _mix(_mix(seed)) >> 1\n",
        "test_tensor_parallel.py -k two",
    ),
    "a sharded norm's parameters have gradients of one rank": Mutation(
        "normreg/sharding.py",
        "Partial() if isinstance(p, Shard) else p",
        "p.__class__() if p.is_replicate() else Partial('avg')",
        "test_tensor_parallel.py -k two",
    ),
}


# compiled files are of a copy; plugins are of whatever is installed beside what the tests need
RUN = """
import os, sys
import pytest
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
sys.dont_write_bytecode = False
raise SystemExit(pytest.main({arguments}))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout, in which what Python has compiled for one bug is there for the next."""
    folder = tmp_path_factory.mktemp("checkout")
    for room in ("kernels", "normreg", "tests", "bench"):
        shutil.copytree(ROOT / room, folder / room, symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@contextlib.contextmanager
def planted(mutation, checkout):
    path = checkout / mutation.file
    source = path.read_text()
    assert source.count(mutation.was) == 1, f"{mutation.was!r} is not once in {mutation.file}"

    def write(text):
        path.write_text(text)
        # Python tells a file from another by its size and by the second in which it was written
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()

    write(source.replace(mutation.was, mutation.now))
    try:
        yield
    finally:
        write(source)


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_a_planted_bug_is_found(checkout, tmp_path, mutation):
    if mutation.tests.startswith("test_far_offsets") and not INTERPRET:
        pytest.skip("found by a test that runs one program in the interpreter")
    name, *selection = mutation.tests.split(" -k ")
    # what would collect garbage at the end, at length
    plugins = ["-p", "no:cacheprovider", "-p", "no:unraisableexception", "-p", "no:threadexception"]
    # the traceback as Python has it, because pytest's own parses each file that it goes through
    arguments = ["-x", "-q", "--tb=native", *plugins, f"tests/{name}"]
    arguments += [word for expression in selection for word in ("-k", expression.strip("'"))]
    source = RUN.format(arguments=arguments)
    with planted(mutation, checkout):
        status = exit_status(source, checkout, tmp_path / "log")
    # or ended by a signal: an address outside the process or a broken heap is as good as a failed test
    assert status == pytest.ExitCode.TESTS_FAILED or status < 0, (tmp_path / "log").read_text()

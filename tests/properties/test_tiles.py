"""Tiles of any shape: they cover it, are powers of two, and fit a program and a grid."""

import pytest
import torch
from drawn import dtypes, st
from hypothesis import assume, given

from normreg.kernels import dtypes as kernel_dtypes
from normreg.kernels import tiling
from normreg.kernels.ada_norm import is_held
from normreg.kernels.tiling import hardware
from normreg.kernels.tiling.rows import Rows, RowTile

sizes = st.one_of(
    st.integers(1, 300), st.integers(1, 2**18), st.sampled_from([2**n + d for n in range(18) for d in (0, 1)])
)
few = st.integers(1, 2**12)
MOST_SPLITS = 65535  # of a grid's second dimension
DEVICE = torch.device("cpu")


@pytest.fixture(autouse=True)
def an_h100(monkeypatch):
    monkeypatch.setattr(hardware, "multiprocessors", lambda device: 132)


def power_of_two(number):
    return number >= 1 and number & (number - 1) == 0


def assert_fits(tile, elements, words, most_words=64):
    """A program has at most 32 warps, and a thread at most so many words of a tile."""
    assert power_of_two(tile.num_warps)
    assert tile.num_warps <= 32
    assert elements * words <= most_words * 32 * tile.num_warps, tile


def words_of(dtype):
    return hardware.words_of(kernel_dtypes.compute_dtype(dtype))


def assert_row_tile(tile, rows, dtype):
    assert power_of_two(tile.rows)
    assert power_of_two(tile.cols)
    assert tile.tiles >= 1
    assert (tile.tiles - 1) * tile.cols < max(rows.cols, 1), "a tile is empty"
    assert tile.tiles == 1 or tile.rows == 1 or tile.covers(rows)
    packed = 2 if tile.packed else 1
    assert_fits(tile, tile.tiles * tile.rows * tile.cols // packed, words_of(dtype))


ROW_TILES = {
    "forward": tiling.rows.layer_norm_forward_tile,
    "backward": tiling.rows.layer_norm_backward_tile,
    "backward, not centred": lambda rows, dtype: tiling.rows.layer_norm_backward_tile(rows, dtype, False),
    "dropout_add_norm forward": tiling.rows.dropout_add_norm_forward_tile,
    "dropout_add_norm backward": lambda rows, dtype: tiling.rows.dropout_add_norm_backward_tile(
        rows, kernel_dtypes.compute_dtype(dtype)
    ),
    "ada_norm forward": lambda rows, dtype: tiling.modulated.ada_norm_forward_tile(rows, dtype, rows.vector),
    "ada_norm backward": lambda rows, dtype: tiling.modulated.ada_norm_backward_tile(
        rows, dtype, 4 * dtype.itemsize
    ),
    "held": tiling.rows.layer_norm_backward_held_tile,
    "wide": lambda rows, dtype: tiling.rows.layer_norm_backward_wide_tile(rows, dtype, True),
    "wide, not centred": lambda rows, dtype: tiling.rows.layer_norm_backward_wide_tile(rows, dtype, False),
    "parameters": tiling.rows.layer_norm_backward_parameters_tile,
}


@pytest.mark.parametrize("name", ROW_TILES)
@given(cols=sizes, rows=st.integers(1, 2**20), others=st.integers(1, 2**20), dtype=dtypes)
def test_row_tiles(name, cols, rows, others, dtype):
    """And none depends on the number of rows: a row's result does not, nor is more than one compiled."""
    choose = ROW_TILES[name]
    assume(not name.startswith("ada_norm") or is_held(cols, dtype))
    tile = choose(Rows(1, rows, cols, False), dtype)
    assert tile == choose(Rows(1, others, cols, False), dtype)
    if tile is None:
        return
    seen = Rows(1, rows, cols, False)
    if name == "wide" or name.startswith("wide,"):
        assert -(-cols // (tile.tiles * tile.cols)) in (1, 2)
    elif name == "held":
        assert tile.covers(seen)
    if name != "parameters":
        assert_row_tile(tile, seen, dtype)


@given(channels=sizes, positions=sizes, samples=few, dtype=dtypes)
def test_tiles_over_channels_of_positions(channels, positions, samples, dtype):
    for choose in (tiling.rows.layer_norm_forward_tile, tiling.rows.layer_norm_backward_tile):
        tile = choose(Rows(samples, positions, channels, True), dtype)
        assert tile == choose(Rows(1, positions, channels, True), dtype)
        assert_row_tile(tile, Rows(samples, positions, channels, True), dtype)


def assert_channel_tile(tile, samples, channels, spatial, dtype, groups=1):
    for number in (tile.samples, tile.channels, tile.spatial, tile.groups):
        assert power_of_two(number)
    elements = tile.samples * tile.channels * tile.spatial * tile.groups
    assert_fits(tile, elements, words_of(dtype))


@given(samples=few, channels=sizes, spatial=sizes, last=st.booleans(), dtype=dtypes, residual=st.booleans())
def test_tiles_of_whole_channels(samples, channels, spatial, last, dtype, residual):
    computed = kernel_dtypes.compute_dtype(dtype)
    arguments = samples, channels, spatial, last, computed
    for tile in (
        tiling.channels.batch_norm_forward_tile(*arguments, residual),
        tiling.channels.batch_norm_backward_tile(*arguments),
    ):
        if tile is not None:
            assert tile.samples >= samples
            assert tile.spatial >= spatial
            assert_channel_tile(tile, *arguments[:3], dtype)


@given(samples=few, channels=sizes, spatial=sizes, last=st.booleans())
def test_tiles_of_splits(samples, channels, spatial, last):
    tile = tiling.channels.batch_norm_split_tile(samples, channels, spatial, last)
    assert_channel_tile(tile, samples, channels, spatial, torch.float32)
    assert power_of_two(tile.partials)
    tiles = -(-samples // tile.samples) * -(-spatial // tile.spatial)
    blocks = -(-channels // tile.channels)
    split = tiling.channels.batch_norm_splits(tiles, tile.samples * tile.spatial, blocks, DEVICE)
    assert_splits(*split, tiles)
    assert_splits(*tiling.groups.group_norm_splits(tiles, tile.samples * tile.spatial, blocks, DEVICE), tiles)


def assert_splits(splits, tiles_each, tiles):
    """All tiles, and no split is empty."""
    assert 1 <= splits <= MOST_SPLITS
    assert (splits - 1) * tiles_each < tiles <= splits * tiles_each


@given(groups=few, channels=sizes, spatial=sizes, last=st.booleans(), samples=few, dtype=dtypes)
def test_tiles_of_groups(groups, channels, spatial, last, samples, dtype):
    computed = kernel_dtypes.compute_dtype(dtype)
    for choose in (tiling.groups.group_norm_forward_tile, tiling.groups.group_norm_backward_tile):
        tile = choose(groups, channels, spatial, last, computed)
        if tile is None:
            continue
        assert tile.channels >= channels
        assert tile.spatial >= spatial
        assert_channel_tile(tile, samples, channels, spatial, dtype)
        blocks = -(-groups // tile.groups)
        programs = tiling.groups.group_norm_backward_programs(samples, spatial, tile, blocks, DEVICE)
        assert 1 <= programs <= -(-samples // tile.samples)


ELEMENT_TILES = {
    "elements": tiling.elements.elements_tile,
    "bias_act forward": tiling.elements.bias_act_forward_tile,
    "bias_act backward": lambda rows, cols: tiling.elements.bias_act_backward_tile(rows, cols, 32),
    "groups": lambda rows, cols: tiling.elements.dropout_grouped_tile(rows, cols, False),
    "groups last": lambda rows, cols: tiling.elements.dropout_grouped_tile(rows, cols, True),
}


@pytest.mark.parametrize("name", ELEMENT_TILES)
@given(rows=st.integers(2, 2**20), others=st.integers(2, 2**20), cols=sizes)
def test_element_tiles(name, rows, others, cols):
    tile = ELEMENT_TILES[name](rows, cols)
    assert power_of_two(tile.rows)
    assert power_of_two(tile.cols)
    assert_fits(tile, tile.rows * tile.cols, 1)
    if not name.startswith("groups"):
        assert tile == ELEMENT_TILES[name](others, cols)
        assert tile.cols >= 8, "a Philox call decides 8 elements"
        programs = tiling.partials.elements_programs(-(-rows // tile.rows), -(-cols // tile.cols), DEVICE)
        assert 1 <= programs <= min(MOST_SPLITS, -(-rows // tile.rows))


@given(rows=st.integers(1, 2**24), cols=sizes, dtype=dtypes)
def test_programs_of_rows(rows, cols, dtype):
    seen = Rows(1, rows, cols, False)
    tile = tiling.rows.layer_norm_backward_tile(seen, dtype)
    programs = tiling.partials.row_programs(tile, seen.tiles(tile), 1, DEVICE)
    assert 1 <= programs <= min(seen.tiles(tile), 4 * 132)
    held = tiling.rows.layer_norm_backward_held_tile(seen, dtype)
    if held is not None:
        at_once, programs = tiling.partials.held_rows(rows, held, DEVICE)
        assert 1 <= at_once <= held.rows
        assert 1 <= programs <= 132
        assert (programs - 1) * at_once < rows
    sums = tiling.partials.column_sums_tile(cols, DEVICE)
    assert power_of_two(sums.rows)
    assert power_of_two(sums.cols)
    assert isinstance(sums, RowTile)


@given(channels=sizes)
def test_tiles_of_merges(channels):
    for tile in (
        tiling.channels.sync_batch_norm_tile(channels),
        tiling.groups.group_norm_merge_tile(channels),
    ):
        assert power_of_two(tile.rows)
        assert power_of_two(tile.cols)
        assert_fits(tile, tile.rows * tile.cols, 2)


@given(size=st.integers(1, 2**40))
def test_vectors(size):
    vector = hardware.vector(size)
    assert vector in (1, 2, 4, 8)
    assert size % vector == 0
    assert vector == 8 or size % (2 * vector)


@given(dtype=dtypes, p=st.floats(0, 1))
def test_bits_of_a_decision(dtype, p):
    """p and 1 - p are moved by at most 2^-9 of themselves."""
    bits = tiling.elements.dropout_bits(dtype, p)
    assert bits in (16, 32)
    if bits == 16:
        rounded = round(p * 2**16) / 2**16
        assert abs(rounded - p) <= 2**-9 * min(p, 1 - p)

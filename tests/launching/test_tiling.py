import math

import pytest
import torch
import triton

from normreg.kernels import dtypes, layer_norm, tiling
from normreg.kernels.partition import in_splits
from normreg.kernels.tiling import hardware
from normreg.kernels.tiling.rows import Rows

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cols", [1, 3, 32, 33, 500, 1025, 8191, 16383, 16385, 10**6])
def test_row_tiles(cols, dtype):
    """Tiles of rows that are not held in several tiles."""
    rows, words = Rows(1, 7, cols, channels_first=False), dtypes.compute_dtype(dtype).itemsize // 4
    forward, backward = (
        tiling.rows.layer_norm_forward_tile(rows, dtype),
        tiling.rows.layer_norm_backward_tile(rows, dtype),
    )
    for tile, held in (
        (forward, hardware.TILE_WORDS_FORWARD),
        (backward, hardware.TILE_WORDS_BACKWARD // words),
    ):
        assert tile.tiles == 1
        assert tile.covers(rows) == (cols * words <= held)
        assert tile.rows & (tile.rows - 1) == 0
        assert 1 <= tile.num_warps <= 32
    assert forward.rows * forward.cols * words <= 32 * 32 * forward.num_warps
    assert backward.rows * backward.cols * words <= 16 * 32 * backward.num_warps


@pytest.mark.parametrize(("dtype", "cols", "tiles", "num_warps", "packed"), [
    (BF16, 512, 1, 1, False), (BF16, 520, 3, 1, False), (FP16, 1024, 4, 1, False),
    (BF16, 4096, 8, 2, False), (BF16, 5120, 5, 4, False), (BF16, 12288, 6, 8, False),
    (FP16, 16392, 5, 16, False), (FP16, 32768, 8, 16, False), (FP16, 32776, 5, 32, True),
    (BF16, 65536, 8, 32, True), (BF16, 65544, 1, 8, False), (BF16, 8188, 1, 8, False),
    (FP32, 772, 4, 1, False), (FP32, 32768, 8, 16, False),
    (FP32, 770, 1, 1, False), (FP32, 32772, 1, 8, False), (FP64, 4096, 1, 8, False),
])  # fmt: skip
def test_tiles_of_a_row(dtype, cols, tiles, num_warps, packed):
    """A thread has at most 64 elements of rows whose loads are widest, and no tile is empty."""
    tile = tiling.rows.layer_norm_forward_tile(Rows(1, 7, cols, channels_first=False), dtype)
    assert (tile.tiles, tile.num_warps, tile.packed) == (tiles, num_warps, packed)
    if tiles > 1:
        assert tile.rows == 1
        assert (tiles - 1) * tile.cols < cols <= tiles * tile.cols <= 64 * 32 * num_warps


@pytest.mark.parametrize(("dtype", "cols", "centered", "tiles"), [
    (BF16, 8192, True, 1), (BF16, 8200, True, 5), (FP16, 16384, True, 8), (BF16, 16392, True, 0),
    (BF16, 16392, False, 9), (FP16, 20480, False, 10), (BF16, 20488, False, 0), (BF16, 8196, True, 0),
    (FP32, 8192, False, 1), (FP32, 8196, False, 0), (FP64, 2048, False, 1), (FP64, 2050, False, 0),
])  # fmt: skip
def test_tiles_of_the_backward(dtype, cols, centered, tiles):
    """0: not held. Column sums of dy, which centred rows have, take registers of their own."""
    rows = Rows(1, 7, cols, channels_first=False)
    tile = tiling.rows.layer_norm_backward_tile(rows, dtype, centered)
    assert tile.covers(rows) == (tiles > 0)
    assert tile.tiles == max(1, tiles)
    if tiles > 1:
        assert (tiles - 1) * tile.cols < cols


@pytest.mark.parametrize(("dtype", "cols", "centered", "tile"), [
    (BF16, 12288, True, (2048, 6)), (BF16, 12296, True, (2048, 4)), (FP16, 24576, True, (2048, 6)),
    (BF16, 24584, True, None), (BF16, 32768, True, (2048, 8)), (BF16, 32776, True, None),
    (BF16, 24576, False, (4096, 6)), (FP16, 24584, False, (4096, 4)), (BF16, 49152, False, (4096, 6)),
    (BF16, 49160, False, None), (BF16, 20484, False, None), (FP32, 8196, True, (2048, 5)),
    (FP32, 24576, True, (2048, 6)), (FP32, 32768, True, None), (FP32, 24576, False, (4096, 3)),
    (FP32, 24580, False, None), (FP64, 4096, True, None),
])  # fmt: skip
def test_tiles_of_wide_rows(dtype, cols, centered, tile):
    """One program or two have all columns, and none of the tiles is empty."""
    wide = tiling.rows.layer_norm_backward_wide_tile(Rows(1, 7, cols, False), dtype, centered)
    if tile is None:
        assert wide is None
    else:
        assert (wide.cols, wide.tiles) == tile
        programs = -(-cols // (wide.cols * wide.tiles))
        assert programs in (1, 2)
        assert (wide.tiles - 1) * wide.cols * programs < cols


@pytest.mark.parametrize(("dtype", "cols", "tile"), [
    (BF16, 512, None), (BF16, 520, (8, 256, 3)), (BF16, 768, (8, 256, 3)), (FP16, 1024, (8, 512, 2)),
    (BF16, 4096, (2, 2048, 2)), (BF16, 5120, (1, 2048, 3)), (BF16, 6144, (1, 2048, 3)),
    (BF16, 6152, (1, 4096, 2)), (FP16, 8192, (1, 4096, 2)), (BF16, 8200, None), (BF16, 4100, None),
    (FP32, 4096, None),
])  # fmt: skip
def test_tiles_that_the_backward_holds(dtype, cols, tile):
    """A thread has 8 elements of a row in each of two or three tiles, and none of these is empty."""
    found = tiling.rows.layer_norm_backward_held_tile(Rows(1, 7, cols, channels_first=False), dtype)
    assert (found and (found.rows, found.cols, found.tiles)) == tile
    if found is not None:
        assert found.rows * found.cols == 8 * 32 * found.num_warps
        assert (found.tiles - 1) * found.cols < cols <= found.tiles * found.cols


@pytest.mark.parametrize(("rows", "cols", "dtype", "programs"), [
    (64, 4096, BF16, 64), (131, 4096, BF16, 131), (264, 4096, BF16, 132), (512, 1024, BF16, 128),
    (16384, 4096, BF16, 132), (64, 4096, FP32, 64), (264, 4096, FP32, 132), (16384, 4096, FP32, 264),
])  # fmt: skip
def test_few_rows_are_shared_out(rows, cols, dtype, programs, device, monkeypatch):
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 132)
    shape = torch.Size((rows, cols))
    launches = layer_norm.backward_launches(shape, cols, dtype, dtype, None, True, False, device)
    assert launches.programs == programs


@pytest.mark.parametrize(
    ("dtype", "cols", "stages"),
    [
        (BF16, 64, 3),
        (FP16, 8192, 3),
        (BF16, 20000, 3),
        (BF16, 1001, 1),
        (FP32, 4096, 1),
        (FP64, 64, 1),
    ],
)
def test_stages_of_the_backward(dtype, cols, stages):
    shape, device = torch.Size((7, cols)), torch.device("cpu")
    launches = layer_norm.backward_launches(shape, cols, dtype, dtype, None, True, False, device)
    assert launches.main.constants["TILE"].stages == stages


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("positions", [1, 7, 49, 3136])
@pytest.mark.parametrize("channels", [1, 3, 96, 768, 1025, 5000])
def test_channels_first_tiles(channels, positions, dtype):
    words, rows = dtype.itemsize // 4, Rows(2, positions, channels, channels_first=True)
    for choose, held_words, words_per_thread in (
        (tiling.rows.layer_norm_forward_tile, hardware.TILE_WORDS_FORWARD, 64),
        (tiling.rows.layer_norm_backward_tile, hardware.TILE_WORDS_BACKWARD // words, 32),
    ):
        tile = choose(rows, dtype)
        if tile.cols >= channels:
            assert tile.rows * tile.cols * words <= held_words
            assert tile.rows >= min(positions, tiling.rows.FEWEST_POSITIONS)
            assert tile.rows < 2 * positions
            assert tile.rows * tile.cols * words <= words_per_thread * 32 * tile.num_warps
        else:
            assert tile.rows * tile.cols * words == tiling.rows.CHUNK_WORDS


@pytest.mark.parametrize("rows", [1, 7, 128, 10**6])
@pytest.mark.parametrize(("cols", "most"), [(512, 4), (8192, 1), (16384, 1), (65536, 4)])
def test_partial_sums_stay_few(rows, cols, most, device, monkeypatch):
    """At most as many programs as a multiprocessor's registers have room for."""
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 132)
    shape = torch.Size((rows, cols))
    launches = layer_norm.backward_launches(shape, cols, BF16, BF16, None, True, False, device)
    col_blocks, programs = launches.main.grid
    assert 1 <= programs <= rows
    assert math.prod(launches.main.grid) <= most * 132 + col_blocks


@pytest.mark.parametrize("tiles", [1, 2, 63, 64, 65, 1000, 10**6])
@pytest.mark.parametrize("channel_blocks", [1, 3, 64])
@pytest.mark.parametrize("positions", [32, 2048])
def test_splits_cover_the_tiles_and_none_is_empty(tiles, positions, channel_blocks, device, monkeypatch):
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 132)
    splits, tiles_per_split = tiling.channels.batch_norm_splits(tiles, positions, channel_blocks, device)
    assert 1 <= splits <= tiling.channels.MAX_CHANNEL_SPLITS
    assert 12 * splits <= 4 * tiles_per_split * positions, "partial results beside what is normalised"
    assert (splits - 1) * tiles_per_split < tiles <= splits * tiles_per_split


@pytest.mark.parametrize(
    # of 132 multiprocessors; more programs in channels-last would merge more bytes than they normalise
    ("channels_last", "fewest"),
    [(False, 2 * 132), (True, 120)],
    ids=["contiguous", "channels_last"],
)
def test_64_channels_fill_a_gpu(device, monkeypatch, channels_last, fewest):
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 132)
    x = torch.empty(32, 64, 56, 56, dtype=torch.bfloat16, device="meta")
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    assert math.prod(in_splits(x).grid) >= fewest


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("spatial", [1, 49, 3136, 10**6, 2**31])
@pytest.mark.parametrize("channels", [1, 3, 64, 1000])
def test_channel_tiles_have_their_size(channels, spatial, channels_last):
    samples = 1 if channels_last else 16
    tile = tiling.channels.batch_norm_split_tile(samples, channels, spatial, channels_last)
    assert tile.samples * tile.channels * tile.spatial == tiling.channels.SPLIT_TILE
    assert tile.channels < 2 * channels or not channels_last
    assert tile.samples == 1 or not channels_last
    if not channels_last:
        masked = triton.cdiv(spatial, tile.spatial) * tile.spatial - spatial
        assert masked <= spatial // 8 or tile.spatial <= tiling.channels.SHORTEST


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("spatial", [1, 49, 1025, 10**6])
@pytest.mark.parametrize("channels", [1, 3, 64, 10**7])
@pytest.mark.parametrize("samples", [1, 7, 100])
def test_tiles_of_channels_hold_them_or_are_none(samples, channels, spatial, channels_last, dtype):
    if channels_last:
        samples, spatial = 1, samples * spatial
    words = samples * spatial * dtype.itemsize // 4 * (min(channels, 64) if channels_last else 1)
    per_thread = 16 if channels_last else 32
    for choose, held in (
        (tiling.channels.batch_norm_forward_tile, hardware.TILE_WORDS_FORWARD),
        (tiling.channels.batch_norm_backward_tile, hardware.TILE_WORDS_BACKWARD),
    ):
        tile = choose(samples, channels, spatial, channels_last, dtype)
        if tile is None:
            assert 8 * words > held or samples * channels * spatial >= 2**31
            continue
        assert samples * channels * spatial < 2**31, "offsets are 32 bits"
        assert samples <= tile.samples < 2 * samples
        assert spatial <= tile.spatial < 2 * spatial
        assert tile.channels < 2 * channels
        elements = tile.samples * tile.channels * tile.spatial
        assert elements * dtype.itemsize // 4 <= min(held, tile.num_warps * 32 * per_thread)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("groups", [1, 3, 32, 1000])
@pytest.mark.parametrize("channels", [1, 3, 64, 5000])
@pytest.mark.parametrize(("spatial", "channels_last"), [(s, f) for s in (1, 49, 2**31) for f in (0, 1)])
def test_tiles_of_groups_hold_them_or_are_none(channels, spatial, groups, dtype, channels_last):
    words = dtype.itemsize // 4
    for direction, held, per_thread in (
        (tiling.groups.group_norm_forward_tile, hardware.TILE_WORDS_FORWARD, 32),
        (tiling.groups.group_norm_backward_tile, hardware.TILE_WORDS_BACKWARD // words, 16),
    ):
        tile = direction(groups, channels, spatial, channels_last, dtype)
        if tile is None:
            side_by_side = min(2 * groups, 2 * tiling.groups.RUN // channels + 1) if channels_last else 1
            assert 4 * channels * spatial * words * side_by_side > held
            continue
        assert not channels_last or spatial == 1 or tile.groups * channels >= min(channels * groups, 32)
        assert channels <= tile.channels < 2 * channels
        assert spatial <= tile.spatial < 2 * spatial
        assert tile.groups < 2 * groups
        assert tile.samples == 1 or tile.groups >= groups
        assert tile.channels * tile.spatial * words <= held
        assert tile.samples * tile.groups * tile.channels * tile.spatial * words <= 32 * per_thread * 32


@pytest.mark.parametrize("tiles", [1, 5, 10, 16, 64, 65, 1000, 10**6])
@pytest.mark.parametrize("groups", [1, 2, 32, 132, 1000])
def test_splits_of_groups_of_one_sample_fill_a_gpu(tiles, groups, monkeypatch):
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 132)
    splits, tiles_per_split = tiling.groups.group_norm_splits(tiles, 4096, groups, None)
    assert splits >= min(-(-132 // groups), tiles, hardware.MAX_SPLITS // 2)
    assert tiles_per_split >= 4 or splits * groups < 2 * 132 + groups


@pytest.mark.parametrize("samples", [1, 7, 128, 10**6])
@pytest.mark.parametrize("spatial", [1, 9, 3136])
def test_partial_sums_of_groups_stay_few(samples, spatial, device):
    tile = tiling.groups.group_norm_backward_tile(4, 2, spatial, False, torch.float32)
    programs = tiling.groups.group_norm_backward_programs(samples, spatial, tile, 1, device)
    assert 1 <= programs <= -(-samples // tile.samples)
    assert programs <= 4 * hardware.multiprocessors(device)


@pytest.mark.parametrize("groups_last", [True, False])
@pytest.mark.parametrize("positions", [2, 3, 49, 3136, 10**6])
@pytest.mark.parametrize("groups", [1, 3, 64, 1000])
def test_group_tiles_have_their_size(groups, positions, groups_last):
    tile = tiling.elements.dropout_grouped_tile(groups, positions, groups_last)
    assert tile.rows * tile.cols == tiling.elements.DROPOUT_TILE * (1 + groups_last)
    assert (tile.rows < 2 * groups) if groups_last else (tile.cols < 2 * positions)


@pytest.mark.parametrize("tiles", [1, 2, 100, 132, 200, 264, 1056, 1057, 10**6])
@pytest.mark.parametrize("side_by_side", [1, 2, 200])
def test_programs_that_add_up_tiles(tiles, side_by_side, device, monkeypatch):
    """No more than run at a time, none without a tile, and with fewer than eight tiles only up to a wave."""
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 132)
    programs = tiling.partials.programs(tiles, side_by_side, 4, 8, device)
    assert 1 <= programs <= tiles
    assert programs == 1 or (programs - 1) * side_by_side < 4 * 132
    wave = -(-132 // side_by_side)
    assert programs >= min(tiles, wave)
    assert programs <= wave or 8 * (programs - 1) < tiles


@pytest.mark.parametrize("multiprocessors", [1, 4, 132])
@pytest.mark.parametrize("cols", [1, 8, 768, 1024, 4096, 5120, 65536])
def test_column_sums_have_a_program_for_most_multiprocessors(cols, multiprocessors, device, monkeypatch):
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: multiprocessors)
    tile = tiling.partials.column_sums_tile(cols, device)
    assert tile.rows * tile.cols == tiling.partials.COLUMN_SUMS_WORDS
    assert 8 <= tile.cols <= 64
    programs = -(-cols // tile.cols)
    assert programs >= 0.75 * multiprocessors or tile.cols == 8
    assert tile.cols == 64 or cols < 2 * tile.cols * 0.75 * multiprocessors, "no narrower than it must be"

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import normreg
from normreg.kernels import launch, layer_norm
from normreg.kernels.channels import plan
from normreg.kernels.rows import Rows

ROOT = Path(__file__).parent.parent
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64

SWEEP = """
import torch
from bench import stub_driver
from normreg.kernels import batch_norm, dropout, group_norm, instance_norm, launch, layer_norm, rms_norm

held = launch.batch_norm_held_forward_tile, launch.batch_norm_held_backward_tile
launch.batch_norm_held_forward_tile = launch.batch_norm_held_backward_tile = lambda *_: None

def launch_all(batch):
    def tensor(*shape, dtype=torch.bfloat16):
        return torch.zeros(shape, dtype=dtype)

    all_three = (True, True, True)
    for cols in (64, 768, 12000, 20000, 70000):
        x, w, s = tensor(batch, cols), tensor(cols), tensor(batch, dtype=torch.float32)
        layer_norm.layer_norm_forward(x, w, w, cols, 1e-5, x.dtype, True)
        layer_norm.layer_norm_backward(x, x, w, s, s, cols, x.dtype, all_three)
        rms_norm.rms_norm_forward(x, w, cols, 1e-5, x.dtype, True)
        rms_norm.rms_norm_backward(x, x, w, s, cols, x.dtype, (True, True))
    c, s, tracked = tensor(24), tensor(24, dtype=torch.float64), tensor(dtype=torch.int64)
    for x in (
        tensor(batch, 24, 14, 14), tensor(batch, 24, 14, 14).to(memory_format=torch.channels_last),
        tensor(batch, 24, 2, 2), tensor(batch, 24),
    ):
        batch_norm.batch_norm_forward(x, c, c, c, c, tracked, None, 1e-5, True)
        batch_norm.batch_norm_inference(x, c, c, c, c, 1e-5, True)
        batch_norm.batch_norm_backward(x, x, c, s, c, 1e-5, c.dtype, True, all_three)
    for x in (tensor(batch, 24), tensor(batch, 24, 14, 14), tensor(batch, 24, 80, 80)):
        for groups in (3, 24):
            m = tensor(batch, groups, dtype=torch.float32)
            group_norm.group_norm_forward(x, c, c, groups, 1e-5, x.dtype, True)
            group_norm.group_norm_backward(x, x, c, m, m, groups, 1e-5, c.dtype, all_three)
    instance_norm.instance_norm_update_running(x, m, m, c, c, 0.1)
    dropout.dropout(tensor(batch, 768), 0.1, batch)
    dropout.dropout(tensor(batch, 768), 0.1, batch, constants=dropout.alpha)
    image = tensor(batch, 24, 14, 14)
    for leading, x in ((1, image), (2, image), (2, image.to(memory_format=torch.channels_last))):
        dropout.dropout(x, 0.1, batch, leading=leading)

record = stub_driver.install()
launch_all(2)
compiled, launched = len(record.compiled), len(record.launched)
assert set(record.compiled) == {name for name, _ in record.launched}
assert launched == 2 * (5 * 3 + 2) + 4 * 5 + (5 * 3 + 2 + 4) + 1 + 5, launched
for batch in (1, 3, 16, 17, 32, 1000):
    launch_all(batch)
assert len(record.launched) == 7 * launched
assert len(record.compiled) == compiled, record.compiled[compiled:]

launch.batch_norm_held_forward_tile, launch.batch_norm_held_backward_tile = held
launch.forget_plans()
for batch in range(2, 65):  # a channel of all samples is a tile: from 2 to 4, ..., from 32 to 64
    x, c, s = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((batch, 24, 2, 2), (24,), (24,)))
    batch_norm.batch_norm_forward(x, c, c, c, c, None, 0.1, 1e-5, True)
    batch_norm.batch_norm_backward(x, x, c, s.double(), s.float(), 1e-5, c.dtype, True, (True, True, True))
new = record.compiled[compiled:]
assert set(new) == {"batch_norm_held_kernel", "batch_norm_held_backward_kernel"}
assert len(new) <= 2 * 6, len(new)
types = {name: signature for name, signature in record.launched}
assert types["layer_norm_forward_kernel"]["eps"] == "fp64"
assert types["batch_norm_normalize_kernel"]["momentum"] == "fp64"
assert types["dropout_kernel"]["seed"] == types["dropout_kernel"]["keep_threshold"] == "i64"
assert {types["dropout_grouped_kernel"][name] for name in ("scale", "shift", "dropped")} == {"fp64"}
"""


def test_a_sweep_over_batch_sizes_compiles_nothing_new():
    """Counted on Triton's own way from a launch to machine code, with a driver that launches nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", SWEEP]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


AGAIN = """
import torch, normreg
from bench import stub_driver
from bench.operations import OPERATIONS, cases
from bench.without_gpu import as_on_a_gpu

def told(argument):
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.shape, argument.data_ptr() % 16
    return type(argument), getattr(argument, "data", argument)  # the data of what hooks are given

seen = []
def launcher(self, source, metadata):
    name = source.fn.__name__
    return lambda *arguments, **options: seen.append((name, options, *map(told, arguments)))

stub_driver.StubDriver.launcher = launcher
record = stub_driver.install()

def step(layer, x, dy):
    seen.clear()
    y = layer(x)
    torch.autograd.grad(y, (x, *layer.parameters()), dy)
    return list(seen)

def told_by_triton(*arguments):  # what Triton's own way says each time
    normreg.kernels.launch.forget_plans()
    return step(*arguments)

with as_on_a_gpu():
    found = [case for name in OPERATIONS for case in cases("host", [name])]
    for case in found:
        layer = OPERATIONS[case.operation].layer(normreg, case, dtype=case.dtype)
        x = case.like_input(torch.randn, "cpu").requires_grad_()
        dy = torch.randn_like(x)
        first = told_by_triton(layer, x, dy)
        compiled = len(record.compiled)
        assert len(first) >= 2, case
        assert step(layer, x, dy) == first == step(layer, x, dy), case

        elsewhere = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x.detach())
        elsewhere.requires_grad_()
        assert elsewhere.data_ptr() % 16
        moved = step(layer, elsewhere, dy)
        assert len(record.compiled) > compiled, case  # other code, without 16-byte accesses
        assert moved == told_by_triton(layer, elsewhere, dy) != first, case
        assert step(layer, x, dy) == first, case
print(len(found))
"""


def test_a_launch_of_a_kept_plan_is_tritons_own():
    """Grid, arguments and variant of the kernels of `bench host`, with a driver that launches nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", AGAIN]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cols", [1, 3, 32, 33, 500, 1025, 8191, 16383, 16385, 10**6])
def test_row_tiles(cols, dtype):
    """Of rows that are not held in parts."""
    rows, words = Rows(1, 7, cols, channels_first=False), launch.compute_dtype(dtype).itemsize // 4
    forward, backward = (
        launch.layer_norm_forward_tile(rows, dtype),
        launch.layer_norm_backward_tile(rows, dtype),
    )
    for tile, held in ((forward, launch.HELD_WORDS_FORWARD), (backward, launch.HELD_WORDS_BACKWARD // words)):
        assert tile.parts == 1
        assert tile.holds(rows) == (cols * words <= held)
        assert tile.rows & (tile.rows - 1) == 0
        assert 1 <= tile.num_warps <= 32
    assert forward.rows * forward.cols * words <= 32 * 32 * forward.num_warps
    assert backward.rows * backward.cols * words <= 16 * 32 * backward.num_warps


@pytest.mark.parametrize(("dtype", "cols", "parts", "num_warps", "packed"), [
    (BF16, 512, 1, 1, False), (BF16, 520, 3, 1, False), (FP16, 1024, 4, 1, False),
    (BF16, 5120, 5, 4, False), (BF16, 12288, 6, 8, False), (FP16, 16392, 5, 16, False),
    (FP16, 32768, 4, 32, False), (FP16, 32776, 5, 32, True), (BF16, 65536, 8, 32, True),
    (BF16, 65544, 1, 8, False), (BF16, 8188, 1, 8, False),
    (FP32, 772, 4, 1, False), (FP32, 32768, 4, 32, False),
    (FP32, 770, 1, 1, False), (FP32, 32772, 1, 8, False), (FP64, 4096, 1, 8, False),
])  # fmt: skip
def test_parts_of_a_row(dtype, cols, parts, num_warps, packed):
    """At most 64 elements a thread, of rows whose loads are as wide as can be; none of the parts is empty."""
    tile = launch.layer_norm_forward_tile(Rows(1, 7, cols, channels_first=False), dtype)
    assert (tile.parts, tile.num_warps, tile.packed) == (parts, num_warps, packed)
    if parts > 1:
        assert tile.rows == 1
        assert (parts - 1) * tile.cols < cols <= parts * tile.cols <= 64 * 32 * num_warps


@pytest.mark.parametrize(("dtype", "cols", "centered", "parts"), [
    (BF16, 8192, True, 1), (BF16, 8200, True, 3), (FP16, 12288, True, 3),
    (BF16, 12296, True, 0), (BF16, 12296, False, 4), (FP16, 16384, False, 4),
    (BF16, 16392, False, 0), (BF16, 8196, True, 0), (FP32, 8196, True, 0),
    (FP32, 8196, False, 3), (FP32, 12288, False, 3), (FP32, 12292, False, 0),
    (FP64, 2048, False, 1), (FP64, 2050, False, 0),
])  # fmt: skip
def test_parts_of_the_backward(dtype, cols, centered, parts):
    """0: not held. Column sums of dy, which centred rows have, take registers of their own."""
    rows = Rows(1, 7, cols, channels_first=False)
    tile = launch.layer_norm_backward_tile(rows, dtype, centered)
    assert tile.holds(rows) == (parts > 0)
    assert tile.parts == max(1, parts)
    assert tile.packed == (parts > 1 and dtype.itemsize == 2)


def test_warps_of_64_lanes():
    assert [launch.warps_of(warps, 64) for warps in (1, 2, 8, 32)] == [1, 1, 4, 16]
    assert [launch.warps_of(warps, 32) for warps in (1, 2, 8, 32)] == [1, 2, 8, 32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("positions", [1, 7, 49, 3136])
@pytest.mark.parametrize("channels", [1, 3, 96, 768, 1025, 5000])
def test_channels_first_tiles(channels, positions, dtype):
    words, rows = dtype.itemsize // 4, Rows(2, positions, channels, channels_first=True)
    for choose, held_words in (
        (launch.layer_norm_forward_tile, launch.HELD_WORDS_FORWARD),
        (launch.layer_norm_backward_tile, launch.HELD_WORDS_BACKWARD // words),
    ):
        tile = choose(rows, dtype)
        if tile.cols >= channels:
            assert tile.rows * tile.cols * words <= held_words
            assert tile.rows >= min(positions, launch.FEWEST_POSITIONS)
            assert tile.rows < 2 * positions
            assert tile.rows * tile.cols * words <= 16 * 32 * tile.num_warps
        else:
            assert tile.rows * tile.cols * words == launch.CHUNK_WORDS


@pytest.mark.parametrize("rows", [1, 7, 128, 10**6])
@pytest.mark.parametrize(("cols", "most"), [(512, 4), (8192, 1), (12288, 1), (65536, 4)])
def test_partial_sums_stay_few(rows, cols, most, device, monkeypatch):
    """At most as many programs as a multiprocessor's registers have room for."""
    monkeypatch.setattr(launch, "multiprocessors", lambda device: 132)
    plan = layer_norm.backward_launches(Rows(1, rows, cols, False), torch.bfloat16, True, device)
    programs = plan.main.grid[0]
    assert 1 <= programs <= rows
    assert math.prod(plan.main.grid) <= most * 132 + plan.main.grid[1]


@pytest.mark.parametrize("tiles", [1, 2, 63, 64, 65, 1000, 10**6])
@pytest.mark.parametrize("channel_blocks", [1, 3, 64])
@pytest.mark.parametrize("positions", [32, 2048])
def test_splits_cover_the_tiles_and_none_is_empty(tiles, positions, channel_blocks, device, monkeypatch):
    monkeypatch.setattr(launch, "multiprocessors", lambda device: 132)
    splits, tiles_per_split = launch.batch_norm_splits(tiles, positions, channel_blocks, device)
    assert 1 <= splits <= launch.MAX_CHANNEL_SPLITS
    assert 24 * splits <= 4 * tiles_per_split * positions, "partial results beside what is normalised"
    assert (splits - 1) * tiles_per_split < tiles <= splits * tiles_per_split


@pytest.mark.parametrize(
    # of 132 multiprocessors; more programs in channels-last would merge more bytes than they normalise
    ("channels_last", "fewest"),
    [(False, 2 * 132), (True, 120)],
    ids=["contiguous", "channels_last"],
)
def test_64_channels_fill_a_gpu(device, monkeypatch, channels_last, fewest):
    monkeypatch.setattr(launch, "multiprocessors", lambda device: 132)
    x = torch.empty(32, 64, 56, 56, dtype=torch.bfloat16, device="meta")
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    assert math.prod(plan(x).grid) >= fewest


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("spatial", [1, 49, 3136, 10**6])
@pytest.mark.parametrize("channels", [1, 3, 64, 1000])
def test_channel_tiles_have_their_size(channels, spatial, channels_last):
    tile = launch.batch_norm_tile(channels, spatial, channels_last)
    assert tile.samples * tile.channels * tile.spatial == launch.CHANNEL_TILE
    assert tile.channels < 2 * channels
    assert tile.samples == 1 or (not channels_last and tile.spatial >= spatial)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("spatial", [1, 49, 1025, 10**6])
@pytest.mark.parametrize("channels", [1, 3, 64, 10**7])
@pytest.mark.parametrize("samples", [1, 7, 100])
def test_tiles_of_channels_hold_them_or_are_none(samples, channels, spatial, channels_last, dtype):
    if channels_last:
        samples, spatial = 1, samples * spatial
    words = samples * spatial * dtype.itemsize // 4 * (min(channels, 64) if channels_last else 1)
    for choose, held, per_thread in (
        (launch.batch_norm_held_forward_tile, launch.HELD_WORDS_FORWARD, 16),
        (launch.batch_norm_held_backward_tile, launch.HELD_WORDS_BACKWARD, 16),
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
@pytest.mark.parametrize("spatial", [1, 49, 3136, 10**6])
def test_tiles_of_groups_hold_them_or_are_none(channels, spatial, groups, dtype):
    words = dtype.itemsize // 4
    for direction, held, per_thread in (
        (launch.group_norm_forward_tile, launch.HELD_WORDS_FORWARD, 32),
        (launch.group_norm_backward_tile, launch.HELD_WORDS_BACKWARD // words, 16),
    ):
        tile = direction(groups, channels, spatial, dtype)
        if tile is None:
            assert 4 * channels * spatial * words > held
            continue
        assert channels <= tile.channels < 2 * channels
        assert spatial <= tile.spatial < 2 * spatial
        assert tile.groups < 2 * groups
        assert tile.samples == 1 or tile.groups >= groups
        assert tile.channels * tile.spatial * words <= held
        assert tile.samples * tile.groups * tile.channels * tile.spatial * words <= 32 * per_thread * 32
        assert 1 <= tile.num_warps <= 32


@pytest.mark.parametrize("tiles", [1, 16, 17, 1000, 10**6])
def test_splits_of_a_group_depend_on_the_group_alone(tiles, device):
    splits, tiles_per_split = launch.group_norm_splits(tiles, 2048, 1, device)
    assert (splits, tiles_per_split) == launch.group_norm_splits(tiles, 2048, 5000, device)
    assert splits <= launch.MAX_SPLITS
    assert (splits - 1) * tiles_per_split < tiles <= splits * tiles_per_split


@pytest.mark.parametrize("samples", [1, 7, 128, 10**6])
@pytest.mark.parametrize("spatial", [1, 9, 3136])
def test_partial_sums_of_groups_stay_few(samples, spatial, device):
    tile = launch.group_norm_backward_tile(4, 2, spatial, torch.float32)
    programs = launch.group_norm_backward_programs(samples, spatial, tile, 1, device)
    assert 1 <= programs <= -(-samples // tile.samples)
    assert programs <= 4 * launch.multiprocessors(device)


@pytest.mark.parametrize("groups_last", [True, False])
@pytest.mark.parametrize("positions", [2, 3, 49, 3136, 10**6])
@pytest.mark.parametrize("groups", [1, 3, 64, 1000])
def test_group_tiles_have_their_size(groups, positions, groups_last):
    tile = launch.dropout_grouped_tile(groups, positions, groups_last)
    assert tile.groups * tile.positions == launch.DROPOUT_TILE * (1 + groups_last)
    assert (tile.groups < 2 * groups) if groups_last else (tile.positions < 2 * positions)


def test_a_first_launch_is_on_the_tensors_device_and_states_fp_fusion(device):
    seen = []

    class Kernel:
        arg_names = ("x_ptr", "seed", "n", "BLOCK")

        def __getitem__(self, grid):
            current = torch.cuda.current_device() if device.type == "cuda" else None
            return lambda *arguments, **options: seen.append((grid, current, arguments, options)) or compiled

    compiled = SimpleNamespace(metadata=SimpleNamespace(target=SimpleNamespace(backend="another")))
    plan = launch.Launch(Kernel(), (3,), device, 7, num_warps=4, BLOCK=8)
    x = torch.zeros(1, device=device)
    launch.launch(plan, x, numbers=(5,))
    options = {"num_warps": 4, "enable_fp_fusion": True, "BLOCK": 8}
    assert seen == [((3,), device.index if device.type == "cuda" else None, (x, 5, 7), options)]
    assert plan.trailing == (7, 8)
    assert plan.runners == {}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_a_device_that_is_not_current():
    x = torch.randn(8, 16, device="cuda:1", requires_grad=True)
    with torch.cuda.device(0):
        y = normreg.functional.layer_norm(x, (16,))
        y.sum().backward()
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (16,)))


def test_launches_of_a_call(device, launches):
    """What each operation launches forward and backward, and nothing else."""
    x = torch.randn(4, 6, device=device, requires_grad=True)
    layers = {
        "layer_norm": normreg.LayerNorm(6, device=device),
        "rms_norm": normreg.RMSNorm(6, device=device),
        "batch_norm": normreg.BatchNorm1d(6, device=device),
        "cumulative average": normreg.BatchNorm1d(6, momentum=None, device=device),
        "inference": normreg.BatchNorm1d(6, device=device).eval(),
        "split channels": lambda x: split(x[:, :, None].repeat(1, 1, 6000)),
        "split channels, inference": lambda x: split.eval()(x[:, :, None].repeat(1, 1, 6000)),
        "activation and residual": lambda x: act(x, x + 1),
        "activation and residual, inference": lambda x: act.eval()(x, x + 1),
        "split, activation and residual": lambda x: split_act(*x[:, :, None].repeat(2, 1, 1, 6000)),
        "group_norm": normreg.GroupNorm(2, 6, device=device),
        "split groups": lambda x: normreg.functional.group_norm(x[:, :, None].repeat(1, 1, 6000), 2),
        "instance_norm": lambda x: instances(x[:, :, None].repeat(1, 1, 2)),
        "dropout": normreg.Dropout(0.5),
        "dropout1d": normreg.Dropout1d(0.5),
        "alpha dropout": normreg.AlphaDropout(0.5),
        "drop path": normreg.DropPath(0.5),
    }
    split = normreg.BatchNorm1d(6, device=device)
    act, split_act = normreg.BatchNormAct1d(6, device=device), normreg.BatchNormAct1d(6, device=device)
    instances = normreg.InstanceNorm1d(6, affine=True, track_running_stats=True, device=device)
    counts = {}
    for name, module in layers.items():
        launches.clear()
        y = module(x)
        forward = len(launches)
        y.sum().backward()
        counts[name] = (forward, len(launches) - forward)
    dropouts = dict.fromkeys(("dropout", "dropout1d", "alpha dropout", "drop path"), (1, 1))
    rows = dict.fromkeys(("layer_norm", "rms_norm"), (1, 2))
    channels = {"batch_norm": (1, 1), "cumulative average": (2, 1), "inference": (1, 1)}
    split_channels = {"split channels": (2, 2), "split channels, inference": (1, 2)}
    fused = {"activation and residual": (1, 1), "activation and residual, inference": (1, 1)}
    fused["split, activation and residual"] = (2, 2)
    groups = {"group_norm": (1, 2), "split groups": (2, 3), "instance_norm": (2, 2)}
    assert counts == rows | channels | split_channels | fused | groups | dropouts

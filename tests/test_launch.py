import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import normreg
from bench.without_gpu import as_on_a_gpu, noted_launches
from normreg.kernels import launch

ROOT = Path(__file__).parent.parent

SWEEP = """
import torch
from bench import stub_driver
from normreg.kernels import batch_norm, dropout, group_norm, instance_norm, launch, layer_norm, rms_norm
from normreg.kernels import tiling

held = tiling.batch_norm_held_forward_tile, tiling.batch_norm_held_backward_tile
tiling.batch_norm_held_forward_tile = tiling.batch_norm_held_backward_tile = lambda *_: None

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
assert launched == (5 * 3 + 2) + (5 * 3 + 1) + 4 * 5 + (5 * 3 + 2 + 4) + 1 + 5, launched
for batch in (1, 3, 16, 17, 32, 1000):
    launch_all(batch)
assert len(record.launched) == 7 * launched
assert len(record.compiled) == compiled, record.compiled[compiled:]

tiling.batch_norm_held_forward_tile, tiling.batch_norm_held_backward_tile = held
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


def printed_where_kernels_are_compiled(*program):
    """What Python prints of a program in this checkout, in a process that does not interpret kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command, environment["PYTHONPATH"] = [sys.executable, "-W", "ignore", *program], str(ROOT)
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sweep_over_batch_sizes_compiles_nothing_new():
    """Counted on Triton's own way from a launch to machine code, with a driver that launches nothing."""
    printed_where_kernels_are_compiled("-c", SWEEP)


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
    assert int(printed_where_kernels_are_compiled("-c", AGAIN)) >= 8


def test_a_captured_step_loads_no_module_that_eager_steps_did_not():
    found = json.loads(printed_where_kernels_are_compiled("tests/drawn_under_capture.py"))
    assert found["launched"] == found["wanted"] != []
    assert found["new"] == []


def huge(*shape):
    """Memory that is reserved and never touched."""
    return torch.empty(shape, dtype=torch.bfloat16, requires_grad=True)


def scaled_sum(x, residual, layer_scale):
    return normreg.functional.dropout_add(x, residual, layer_scale=layer_scale)


@pytest.mark.parametrize(
    "call",
    [
        lambda: (normreg.functional.layer_norm, huge(2, 9_000_000), (9_000_000,)),
        lambda: (normreg.functional.rms_norm, huge(2, 9_000_000), (9_000_000,)),
        lambda: (normreg.functional.dropout_add_layer_norm, *2 * [huge(2, 9_000_000)], (9_000_000,)),
        lambda: (scaled_sum, *2 * [huge(2, 9_000_000)], huge(9_000_000)),
        lambda: (normreg.functional.bias_act_dropout, huge(16384, 11008)),
        lambda: (normreg.functional.bias_act_dropout, huge(2**21, 64), torch.zeros(64, dtype=torch.bfloat16)),
        lambda: (normreg.functional.group_norm, huge(2**20, 8, 4), 2),
        lambda: (normreg.functional.batch_norm, huge(2, 2**20, 4), None, None, None, None, True),
        lambda: (normreg.functional.batch_norm, huge(2**20, 4, 8), None, None, None, None, True),
        lambda: (normreg.functional.dropout, huge(2**28)),
        lambda: (normreg.functional.dropout2d, huge(2**20, 32, 2, 2)),
    ],
)
def test_no_grid_is_larger_than_cuda_launches(call):
    """The launches of forward and backward are noted, not made: tensors have up to 2^28 elements."""
    function, *arguments = call()
    inputs = [t for t in arguments if isinstance(t, torch.Tensor) and t.requires_grad]
    with as_on_a_gpu(), noted_launches() as noted:
        y = function(*arguments)
        torch.autograd.grad(y, inputs, torch.empty_like(y))
    assert len(noted) >= 2
    for entry in noted:
        assert all(n <= most for n, most in zip(entry.grid, (2**31 - 1, 65535, 65535))), entry


def test_a_grid_that_cuda_would_refuse_is_refused_by_name(device):
    kernel = SimpleNamespace(arg_names=(), fn=SimpleNamespace(__name__="some_kernel"))
    launch.Launch(kernel, (65536, 65535), device, num_warps=4)
    with pytest.raises(
        ValueError, match=r"some_kernel: expected at most 65535 programs along y.*\(1, 65536\)"
    ):
        launch.Launch(kernel, (1, 65536), device, num_warps=4)
    with pytest.raises(ValueError, match="along x"):
        launch.Launch(kernel, (2**31,), device, num_warps=4)


def test_warps_of_64_lanes():
    assert [launch.warps_of(warps, 64) for warps in (1, 2, 8, 32)] == [1, 1, 4, 16]
    assert [launch.warps_of(warps, 32) for warps in (1, 2, 8, 32)] == [1, 2, 8, 32]


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

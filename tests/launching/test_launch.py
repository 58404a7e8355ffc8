import json
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import programs
import pytest
import torch
import triton
from triton.backends.nvidia.driver import CudaLauncher

import normreg
from bench.lab.without_gpu import as_on_a_gpu, noted_launches
from normreg.kernels import launch, tiling

ROOT = Path(__file__).parents[2]


def test_a_sweep_over_batch_sizes_compiles_nothing_new():
    """Compilations are counted in Triton's own launch path, with a driver that launches nothing."""
    programs.compiling("sweep_of_batches")


@pytest.mark.slow
def test_a_kept_launch_is_tritons_own():
    """Grid, arguments and variant of the kernels of `bench host`, with a driver that launches nothing."""
    assert int(programs.compiling("kept_launches").stdout) >= 8


@pytest.mark.slow
def test_a_captured_step_loads_no_module_that_eager_steps_did_not():
    found = json.loads(programs.compiling("drawn_under_capture").stdout)
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
    kernel = SimpleNamespace(arg_names=(), fn=SimpleNamespace(__name__="some_kernel", __annotations__={}))
    launch.Launch(kernel, (65536, 65535), device, num_warps=4)
    with pytest.raises(
        ValueError, match=r"some_kernel: expected at most 65535 programs along y.*\(1, 65536\)"
    ):
        launch.Launch(kernel, (1, 65536), device, num_warps=4)
    with pytest.raises(ValueError, match="along x"):
        launch.Launch(kernel, (2**31,), device, num_warps=4)


def test_warps_of_64_lanes():
    assert [tiling.hardware.warps_of(warps, 64) for warps in (1, 2, 8, 32)] == [1, 1, 4, 16]
    assert [tiling.hardware.warps_of(warps, 32) for warps in (1, 2, 8, 32)] == [1, 2, 8, 32]


class Pair(NamedTuple):
    weight: object
    bias: object


class Compiled:
    """What Triton compiles, which notes how it was launched: by its launcher, or in Triton's own way."""

    metadata = SimpleNamespace(target=SimpleNamespace(backend="cuda"))
    function, packed_metadata = "function", "packed"

    def __init__(self):
        self.seen = []

    def run(self, *given):
        self.seen.append(("run", *given))

    def __getitem__(self, grid):
        return lambda *arguments: self.seen.append(("own way", grid, *arguments))


class Kernel:
    """A kernel whose first launch gives `compiled`."""

    arg_names = ("x_ptr", "parameters", "seed", "n", "BLOCK")
    fn = SimpleNamespace(__annotations__={"parameters": Pair}, __name__="kernel")

    def __init__(self):
        self.seen, self.compiled = [], Compiled()

    def __getitem__(self, grid):
        return lambda *arguments, **_: self.seen.append(arguments) or self.compiled


@pytest.fixture
def streams(monkeypatch):
    """Makes 7 + its index the current stream of a device."""
    active = SimpleNamespace(get_current_stream=lambda index: 7 + (index or 0))
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=active))


def test_a_kernel_takes_tensors_in_tuples(device, streams):
    """The first launch gives it NamedTuples, whose fields it names, later ones give compiled code tuples."""
    kernel = Kernel()
    call = launch.Launch(kernel, (3,), device, 7, num_warps=4, BLOCK=8)
    x, weight = torch.zeros(1, device=device), torch.ones(1, device=device)
    call.again((x, weight, None), (5,))
    call.again((x, weight, None), (6,))
    (first,), (later,) = kernel.seen, kernel.compiled.seen
    assert first == (x, (weight, None), 5, 7, 8)
    assert type(first[1]) is Pair
    assert later == ("run", 3, 1, 1, 7, "function", "packed", None, None, None, x, (weight, None), 6, 7, 8)
    assert type(later[-4]) is tuple


def test_whoever_hooks_launches_hears_of_those_that_are_kept(device, streams, monkeypatch):
    """Profilers add to a chain of Triton's, or put a function in its place."""
    kernel, runtime = Kernel(), triton.knobs.runtime
    call = launch.Launch(kernel, (3, 2), device, 7, num_warps=4, BLOCK=8)
    given = (torch.zeros(1, device=device), None, None), (5,)

    def launched():
        kernel.compiled.seen.clear()
        call.again(*given)
        return kernel.compiled.seen[0][:2]

    call.again(*given)
    assert launched() == ("run", 3)
    for name in ("launch_enter_hook", "launch_exit_hook"):
        chain = getattr(runtime, name)
        chain.add(print)
        assert launched() == ("own way", (3, 2, 1))
        chain.remove(print)
        assert launched() == ("run", 3)
        with monkeypatch.context() as patch:
            patch.setattr(runtime, name, print)
            assert launched() == ("own way", (3, 2, 1))
        assert launched() == ("run", 3)


def test_a_variant_is_kept_for_dtypes_and_for_each_aligned_address(device, streams):
    """A first launch for each pattern of absent tensors, dtypes and addresses that are multiples of 16."""
    kernel = Kernel()
    call = launch.Launch(kernel, (3,), device, 7, num_warps=4, BLOCK=8)
    memory = torch.zeros(64, device=device)
    aligned, off_by_4, off_by_8, half = memory[:8], memory[1:9], memory[2:10], memory[:8].half()
    for number, tensors in enumerate(
        [
            (aligned, aligned, None),
            (aligned, None, aligned),
            (half, aligned, None),
            (off_by_4, aligned, None),
            (aligned, off_by_4, None),
            (off_by_4, off_by_4, None),
        ]
    ):
        assert len(kernel.seen) == number
        for _ in range(2):
            call.again(tensors, (5,))
    call.again((off_by_8, aligned, None), (5,))
    call.again((memory[32:], memory[16:], None), (5,))
    assert len(kernel.seen) == 6


def cuda_launcher(**changes):
    """Triton's launcher for CUDA, whose C function notes what it is given."""
    launcher = CudaLauncher.__new__(CudaLauncher)
    launcher.seen = []
    launcher.launch = lambda *given: launcher.seen.append(given)
    sizes = dict.fromkeys(("global_scratch_size", "profile_scratch_size"), 0)
    aligns = dict.fromkeys(("global_scratch_align", "profile_scratch_align"), 1)
    flags = dict(num_ctas=1, launch_cooperative_grid=False, launch_pdl=True, gsan_enabled=False)
    launcher.__dict__ |= sizes | aligns | flags | dict(arg_annotations=["x"], kernel_signature=b"y") | changes
    return launcher


def test_tritons_c_function_is_given_what_tritons_launcher_gives_it(device, streams):
    launcher, kernel = cuda_launcher(), Kernel()
    kernel.compiled.run = launcher
    call = launch.Launch(kernel, (3, 2), device, 7, num_warps=4, BLOCK=8)
    for seed in (5, 6):
        call.again((torch.zeros(1, device=device), None, None), (seed,))
    x = torch.ones(1, device=device)
    launcher.seen.clear()
    call.again((x, None, x), (9,))
    call.again((x, None, x), (9,))
    stream = 7 + (device.index or 0)
    launcher(3, 2, 1, stream, "function", "packed", None, None, None, x, (None, x), 9, 7, 8)
    ours, tritons = launcher.seen
    assert len(tritons) == 16 or triton.__version__ < "3.7"
    assert ours == tritons


@pytest.mark.parametrize("changes", [{}, {"global_scratch_size": 8}, {"profile_scratch_size": 8}])
def test_a_launcher_that_does_more_is_called_itself(streams, changes):
    """Scratch memory is another at each launch. Triton 3.6 has a C function for each kernel."""
    x = torch.zeros(1)
    found = launch.c_function(cuda_launcher(**changes), (3, 2, 1), "function", "packed", (x, (None, x), 9))
    assert (found is None) is (bool(changes) or triton.__version__ < "3.7")


def test_a_first_launch_is_on_the_tensors_device_and_states_fp_fusion(device):
    seen = []

    class Kernel:
        arg_names = ("x_ptr", "seed", "n", "BLOCK")
        fn = SimpleNamespace(__annotations__={})

        def __getitem__(self, grid):
            current = torch.cuda.current_device() if device.type == "cuda" else None
            return lambda *arguments, **options: seen.append((grid, current, arguments, options)) or compiled

    compiled = SimpleNamespace(metadata=SimpleNamespace(target=SimpleNamespace(backend="another")))
    call = launch.Launch(Kernel(), (3,), device, 7, num_warps=4, BLOCK=8)
    x = torch.zeros(1, device=device)
    launch.launch(call, x, numbers=(5,))
    options = {"num_warps": 4, "enable_fp_fusion": True}
    assert seen == [((3,), device.index if device.type == "cuda" else None, (x, 5, 7, 8), options)]
    assert call.trailing == (7, 8)
    assert call.runners == {}


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

"""InstanceNorm: what it adds to GroupNorm's kernels, which are tested in test_group_norm.py."""

import pytest
import torch
import torch.nn.functional as F
from instances import both_modes, running_for
from over_channels import VIEWS, inputs_for, nothing_fits_a_tile
from support.reference import (
    DTYPES,
    UNITS,
    assert_accurate,
    assert_agrees,
    copies,
    error,
    in_every_layout,
    in_layout,
    nudged,
    run,
    unit,
)

import normreg
from normreg.kernels import tiling

SHAPES = [(2, 3, 7), (1, 2, 3), (33, 5, 17), (3, 70, 5), (2, 6, 5, 25), (2, 65, 3, 3), (1, 2, 3, 3, 5)]
SHAPES += [(1, 2, 129, 131)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def functions(running=(None, None), use_input_stats=True, eps=1e-5):
    """normreg's and torch's function of (x, weight, bias); each call works on copies of the buffers."""

    def calls(instance_norm):
        def call(x, weight=None, bias=None):
            buffers = [None if buffer is None else buffer.to(x.dtype, copy=True) for buffer in running]
            return instance_norm(x, *buffers, weight, bias, use_input_stats, 0.3, eps)

        return call

    return calls(normreg.functional.instance_norm), calls(F.instance_norm)


def layer(library, dims, channels, device, dtype=torch.float32, **options):
    torch.manual_seed(1)
    module = getattr(library, f"InstanceNorm{dims}d")(channels, device=device, dtype=dtype, **options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_shape
def test_agrees_with_torch(device, guarded_memory, shape, dtype):
    inputs = [guarded_memory.place(t) for t in inputs_for(shape, dtype, device)]
    assert_agrees(*functions(), inputs)


@every_shape
def test_running_statistics_normalise(device, guarded_memory, shape):
    running = [guarded_memory.place(t) for t in running_for(shape, device)]
    inputs = [guarded_memory.place(t) for t in inputs_for(shape, torch.float32, device)]
    assert_agrees(*functions(running, use_input_stats=False), inputs)


@both_modes
@pytest.mark.parametrize("affine", ["weight", "bias", ""])
def test_absent_parameters(device, affine, use_input_stats):
    shape = (3, 5, 9)
    inputs = inputs_for(shape, torch.float32, device, affine)
    assert_agrees(*functions(running_for(shape, device), use_input_stats), inputs)


@both_modes
@pytest.mark.parametrize("wanted", range(1, 8), ids=lambda bits: f"{bits:03b}")
def test_gradient_of_any_subset(device, wanted, use_input_stats):
    shape = (3, 20, 3, 3)
    inputs = inputs_for(shape, torch.float32, device)
    for i, t in enumerate(inputs):
        t.requires_grad_(bool(wanted >> i & 1))
    assert_agrees(*functions(running_for(shape, device), use_input_stats), inputs)


@both_modes
@pytest.mark.parametrize(
    ("shape", "layout"), in_every_layout(((4, 3, 7),), ((3, 5, 3, 4),), ((2, 3, 2, 3, 2),))
)
def test_gradient_layouts(device, shape, layout, use_input_stats):
    inputs = inputs_for(shape, torch.float32, device)
    dy = in_layout(layout, inputs[0])
    assert_agrees(*functions(running_for(shape, device), use_input_stats), inputs, dy)


@both_modes
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_input_strides(device, view, use_input_stats):
    """torch makes a contiguous y from any strides, channels_last too; the buffers follow x as it is."""
    x = view(torch.randn(4, 4, 6, 8, device=device)).detach().requires_grad_()
    running = running_for(x.shape, device)
    weight, bias = (torch.randn(2 * x.shape[1], device=device)[::2].requires_grad_() for _ in range(2))
    assert_agrees(*functions(running, use_input_stats), [x, weight, bias])
    expected = copies(running)
    F.instance_norm(x.detach(), *expected, momentum=0.3)
    normreg.functional.instance_norm(x.detach(), *running, momentum=0.3)
    for got, want in zip(running, expected, strict=True):
        assert error(got, want.double()) <= 4 * unit(want.double(), torch.float32)


SMALL, SEVERAL_TILES = (5, 3, 4), (34, 33, 6)


@pytest.mark.parametrize(
    ("shape", "momentum", "dtype"),
    [
        *((SMALL, momentum, dtype) for momentum in (None, 0.0, 0.1, 1.0) for dtype in DTYPES),
        (SEVERAL_TILES, 0.1, torch.float32),
    ],
    ids=str,
)
def test_running_statistics(device, guarded_memory, shape, momentum, dtype):
    options = dict(momentum=momentum, track_running_stats=True, affine=True)
    ours, theirs = (layer(library, 1, shape[1], device, dtype, **options) for library in (normreg, torch.nn))
    exact = layer(torch.nn, 1, shape[1], device, torch.float64, **options)
    for _ in range(2):
        x = guarded_memory.place((torch.randn(shape, device=device) * 3 + 2).to(dtype))
        for module in (ours, theirs):
            module(x)
        exact(x.double())
    for name in ("running_mean", "running_var"):
        buffers = [getattr(module, name) for module in (ours, theirs, exact)]
        # two updates, each rounded to the dtype of the buffer
        allowed = 2 * UNITS[dtype] * unit(buffers[2], dtype)
        assert error(buffers[0], buffers[2]) <= error(buffers[1], buffers[2]) + allowed
        assert buffers[0]._version == buffers[1]._version
    assert torch.equal(ours.num_batches_tracked, theirs.num_batches_tracked)


def test_running_statistics_of_instances_that_are_split(device, monkeypatch):
    nothing_fits_a_tile(monkeypatch)
    shape = (3, 2, 5000)
    x = torch.randn(shape, device=device) + 1e6
    running = running_for(shape, device)
    exact = [t.double() for t in running]
    F.instance_norm(x.double(), *exact, momentum=0.3)
    normreg.functional.instance_norm(x, *running, momentum=0.3)
    for got, want in zip(running, exact, strict=True):
        assert error(got, want) <= 2 * unit(want, torch.float32)


def test_running_mean_of_means_that_cancel(device):
    """Each mean is kept in two numbers, so that their average is as exact as what is left of them."""
    x = torch.randn(2, 3, 50, device=device)
    x += torch.tensor([1e6, -1e6], device=device).view(2, 1, 1)
    running = running_for(x.shape, device)
    exact = [t.double() for t in running]
    F.instance_norm(x.double(), *exact, momentum=0.3)
    normreg.functional.instance_norm(x, *running, momentum=0.3)
    for got, want in zip(running, exact, strict=True):
        assert error(got, want) <= 2 * unit(want, torch.float32)


def test_running_var_is_unbiased_and_an_average(device):
    x = torch.tensor([[[1.0, 3.0]], [[5.0, 5.0]]], device=device)
    module = normreg.InstanceNorm1d(1, momentum=1.0, track_running_stats=True, device=device)
    module(x)
    assert module.running_mean.item() == 3.5
    assert module.running_var.item() == 1.0


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("track", [True, False], ids=["track", "no track"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_module(device, launches, dims, batched, track, training):
    shape = ((3,) if batched else ()) + (4, 5, 2, 3)[: dims + 1]
    x = torch.randn(shape, device=device)
    results = []
    for library in (normreg, torch.nn):
        module = layer(library, dims, 4, device, affine=True, track_running_stats=track).train(training)
        y = module(x)
        results.append((y, module.state_dict(), repr(module)))
        expected = ["batch_norm_inference_kernel"]
        if training or not track:
            expected = ["group_norm_forward_kernel"] + ["instance_norm_running_kernel"] * track
        assert launches == expected
    (ours, our_state, our_repr), (theirs, their_state, their_repr) = results
    assert our_repr == their_repr
    assert error(ours, theirs.double()) <= 4 * unit(theirs.double(), torch.float32)
    assert our_state.keys() == their_state.keys()
    for key, value in their_state.items():
        # a mean of values of the size of x may itself be small
        assert error(our_state[key], value.double()) <= unit(x.double(), torch.float32), key


def test_another_number_of_channels_warns_as_torch_does(device):
    x = torch.randn(2, 3, 5, device=device)
    messages = []
    for library in (normreg, torch.nn):
        with pytest.warns(UserWarning, match="does not match num_features") as caught:
            library.InstanceNorm1d(4, device=device)(x)
        messages.append([str(warning.message) for warning in caught])
    assert messages[0] == messages[1]


@both_modes
def test_what_is_saved(device, use_input_stats):
    """The buffers are not saved: they may be overwritten before the backward."""
    shape = (3, 8, 5, 5)
    x, weight, bias = inputs_for(shape, torch.float32, device)
    running = running_for(shape, device)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        y = normreg.functional.instance_norm(x, *running, weight, bias, use_input_stats)
    assert saved == [x.numel(), 8, *([3 * 24] if use_input_stats else [8, 8])]
    dy = torch.randn_like(y)
    first = torch.autograd.grad(y, (x, weight, bias), dy, retain_graph=True)
    for buffer in running:
        buffer.fill_(7.0)
    assert all(map(torch.equal, first, torch.autograd.grad(y, (x, weight, bias), dy)))


@both_modes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_parameters_beside_16_bits(device, dtype, use_input_stats):
    shape = (3, 6, 5, 5)
    x, *parameters = inputs_for(shape, dtype, device)
    inputs = [x, *(t.detach().float().requires_grad_() for t in parameters)]
    running = running_for(shape, device)
    dy = torch.randn(shape, device=device, dtype=dtype)

    def instance_norm(x, weight, bias):
        buffers = copies(running)
        y = normreg.functional.instance_norm(x, *buffers, weight, bias, use_input_stats)
        assert all(buffer.dtype == torch.float32 for buffer in buffers)
        return y

    results = run(instance_norm, inputs, dy)
    theirs = functions(running, use_input_stats)[1]
    exact = run(theirs, copies(inputs, torch.float64), dy.double())
    near = run(theirs, copies(inputs, torch.float64), nudged(dy.double(), torch.float32))
    for result, truth, beside, like in zip(results, exact, near, (x, *inputs), strict=True):
        assert_accurate(result, truth.to(like.dtype), truth, slack=2 * error(beside, truth))


@both_modes
def test_without_gradients(device, use_input_stats):
    shape = (2, 4, 5)
    x, running = torch.randn(shape, device=device, requires_grad=True), running_for(shape, device)
    with torch.no_grad():
        y = normreg.functional.instance_norm(x, *running, use_input_stats=use_input_stats)
        assert not y.requires_grad
    with torch.inference_mode():
        y = normreg.functional.instance_norm(x, *running, use_input_stats=use_input_stats)
        assert y.is_inference()
        module = layer(normreg, 1, 4, device, track_running_stats=True)
        assert module(x).is_inference()


def test_autocast_leaves_the_dtype(device, launches):
    x = torch.randn(2, 4, 5, device=device, dtype=torch.float16)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y, expected = (library.instance_norm(x) for library in (normreg.functional, F))
    assert launches == ["group_norm_forward_kernel"]
    assert y.dtype == expected.dtype == torch.float16


def test_held_and_split_instances_are_tested():
    positions = [torch.Size(shape[2:]).numel() for shape in SHAPES]
    tiles = [
        tiling.groups.group_norm_forward_tile(1, 1, spatial, False, torch.float32) for spatial in positions
    ]
    assert None in tiles
    assert any(tiles)

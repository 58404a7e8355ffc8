"""torch.export: programs have one of our operators for each call that a kernel takes, when loaded, too."""

import io
import os
import subprocess
import sys

import pytest
import torch
from operations import LAYERS, OURS, Called, every_function, every_layer

from normreg.functional import dispatch

BATCH = 6
KERNELS_ON_A_CPU = "NORMREG_CPU_KERNELS", "TRITON_INTERPRET"


@pytest.fixture(autouse=True)
def guarded_memory():
    """Guards nothing: what torch.export itself allocates must not be moved between guard bands."""


def nodes(program):
    """The operators of ours in an exported program, in their order."""
    found = [str(n.target) for n in program.graph.nodes if str(n.target).startswith("normreg.")]
    beside = (
        "normreg.instance_norm_update_running.default",
        "normreg.draw_seed.default",
    )  # of one
    return [name for name in found if name not in beside]


def taken_by_kernels(call, *inputs):
    """The result of an eager call, and how many operations of it kernels took."""
    taken = []
    with dispatch.watched(lambda operation, x, why: taken.append(why is None)):
        y = call(*inputs)
    return y, sum(taken)


def saved_and_loaded(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def assert_same(ours, theirs):
    ours, theirs = (y if isinstance(y, (tuple, list)) else (y,) for y in (ours, theirs))
    for our, their in zip(ours, theirs, strict=True):
        assert torch.equal(our, their)
        assert our.stride() == their.stride()


@pytest.mark.place("torch.export")
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@every_layer
def test_layers(device, row, training):
    """Programs of layers, for batches of any size; results, and running statistics, are eager mode's."""
    layer = row.make().to(device).train(training)
    x = torch.randn(BATCH, *row.sample, device=device)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    loaded = saved_and_loaded(program)
    module = loaded.module()
    x = torch.randn(BATCH + 3, *row.sample, device=device)
    y, calls = taken_by_kernels(layer, x)
    assert nodes(loaded) == nodes(program)
    assert len(nodes(program)) == calls
    if row.draws and training:  # of other seeds
        return
    assert_same(module(x), y)
    state = module.state_dict()  # without what no operator reads
    for name, buffer in layer.named_buffers():
        assert name not in state or torch.equal(state[name], buffer)


@pytest.mark.place("torch.export")
@pytest.mark.parametrize("kind", ["BatchNormAct2d", "Dropout", "LayerNorm", "QKNorm"])
def test_strict(device, kind):
    """Dynamo's way to export."""
    layer = LAYERS[kind].make().to(device)
    x = torch.randn(BATCH, *LAYERS[kind].sample, device=device)
    programs = [torch.export.export(layer, (x,), strict=strict) for strict in (False, True)]
    assert nodes(programs[0]) == nodes(programs[1]) != []


@pytest.mark.parametrize("kind", ["BatchNorm2d", "Dropout2d", "GroupNorm", "InstanceNorm2d", "LayerNorm2d"])
def test_images_of_any_size(device, kind):
    layer = LAYERS[kind].make().to(device)
    small, large = (
        torch.randn(3, *LAYERS[kind].sample[:1], *image, device=device) for image in ((6, 7), (9, 5))
    )
    of_any = {dim: torch.export.Dim(f"size{dim}") for dim in (0, 2, 3)}
    program = torch.export.export(layer, (small,), dynamic_shapes=(of_any,))
    assert len(nodes(program)) == 1
    if not LAYERS[kind].draws:
        assert_same(program.module()(large), layer(large))


class Seam(torch.nn.Module):
    def forward(self, x, scale, residual, gate):
        return OURS.ada_layer_norm(x, scale, residual=residual, gate=gate)


def test_sequences_of_any_length(device):
    """A modulation of samples is not compared with the rows, of which there may be as many as columns."""
    batch, rows = torch.export.Dim("batch"), torch.export.Dim("rows")
    x, m = torch.randn(2, 3, 4, device=device), torch.randn(2, 4, device=device)
    program = torch.export.export(Seam(), (x, m, x, m), dynamic_shapes=({0: batch, 1: rows}, {0: batch}) * 2)
    x, m = torch.randn(3, 4, 4, device=device), torch.randn(3, 4, device=device)
    assert_same(program.module()(x, m, x, m), Seam()(x, m, x, m))


@pytest.mark.place("torch.export")
@every_function
def test_functions(device, row):
    inputs = [t.detach() for t in row.inputs(device)]
    program = torch.export.export(Called(row), tuple(inputs))
    loaded = saved_and_loaded(program)
    y, calls = taken_by_kernels(Called(row), *inputs)
    assert nodes(loaded) == nodes(program)
    assert len(nodes(program)) == calls
    if not row.draws:
        assert_same(loaded.module()(*inputs), y)


def test_a_decomposition_of_an_operator_that_updates_its_arguments(device):
    """torch.export wraps such an operator where it asks for decompositions."""

    def decomposition(x, weight, bias, running_mean, running_var, tracked, momentum, eps, save):
        tracked.add_(7)
        return x * 2, running_mean * 0, running_var * 0

    layer = LAYERS["BatchNorm2d"].make().to(device)
    x = torch.randn(BATCH, *LAYERS["BatchNorm2d"].sample, device=device)
    program = torch.export.export(layer, (x,))
    program = program.run_decompositions({torch.ops.normreg.batch_norm.default: decomposition})
    module = program.module()
    assert nodes(program) == []
    assert torch.equal(module(x), x * 2)
    assert module.state_dict()["num_batches_tracked"] == 7


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@every_layer
def test_programs_made_without_gradients_have_them(device, row, training):
    """A program made within no_grad keeps nothing for a backward; autograd, where it runs, asks for that."""
    if row.draws and training:  # of other seeds
        return
    layer = row.make().to(device).train(training)
    x = torch.randn(BATCH, *row.sample, device=device)
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
    gradients = []
    for call in (layer, program.module()):
        given = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(call(given).square().sum(), given))
    assert_same(*gradients)


RUN_ON_A_CPU = """
import sys, torch, normreg
from torch.export.passes import move_to_device_pass

program, x, expected = sys.argv[1], *torch.load(sys.argv[2])
x.requires_grad_()
y = move_to_device_pass(torch.export.load(program), "cpu").module()(x)
torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x)[0], expected, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.parametrize("kind", ["AdaLayerNorm", "BatchNorm2d", "GroupNorm", "LayerNorm"])
def test_a_program_runs_where_there_are_no_kernels(device, tmp_path, kind):
    """An operator is its decomposition for tensors of a CPU that kernels do not run on."""
    layer, x = LAYERS[kind].make().to(device), torch.randn(BATCH, *LAYERS[kind].sample, device=device)
    torch.export.save(torch.export.export(layer, (x,)), tmp_path / "layer.pt2")
    (dx,) = torch.autograd.grad(layer(x.requires_grad_()).square().sum(), x)
    torch.save((x.detach().cpu(), dx.cpu()), tmp_path / "tensors")
    environment = {name: value for name, value in os.environ.items() if name not in KERNELS_ON_A_CPU}
    command = [sys.executable, "-c", RUN_ON_A_CPU, tmp_path / "layer.pt2", tmp_path / "tensors"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]

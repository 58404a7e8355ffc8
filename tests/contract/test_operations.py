"""The table of operations: every export has a row, and every row agrees with torch and launches kernels."""

import graphs
import pytest
import torch
from operations import FUNCTIONS, LAYERS, LIBRARIES, OF_RANKS, OURS, every_layer
from support.reference import assert_agrees

import normreg

# of normreg.__all__, what is no operation
TOOLS = {
    "Diagnosis",
    "Explanation",
    "Report",
    "as_before",
    "autocast_output",
    "convert_sync_batchnorm",
    "decomposition_table",
    "diagnose",
    "dropout_mask",
    "explain",
    "freeze_batch_norm",
    "functional",
    "fused",
    "hub",
    "init",
    "onnx_table",
    "parameter_groups",
    "recalibrate_batch_norm",
    "recorded_as",
    "register_layer",
    "register_no_decay",
    "register_with",
    "replace",
    "restore",
    "restored",
    "running_statistics_held",
    "unfreeze_batch_norm",
}


def is_layer(name):
    return isinstance(getattr(normreg, name), type) and issubclass(getattr(normreg, name), torch.nn.Module)


def test_every_export_has_a_row():
    """A plain one, under its own name, beside which there may be variants."""
    exported = {name for name in normreg.__all__ if is_layer(name)}
    assert exported == {row.kind for row in LAYERS.values()} == exported & {*LAYERS}
    functions = {*normreg.functional.__all__} - OF_RANKS
    functions |= {*normreg.__all__} - exported - TOOLS
    assert functions == {row.name for row in FUNCTIONS.values()} == functions & {*FUNCTIONS}
    assert set(normreg.__all__) >= TOOLS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [name for name, row in FUNCTIONS.items() if not row.draws])
def test_functions_agree_with_torch(device, launches, name, dtype):
    row = FUNCTIONS[name]
    inputs = row.inputs(device, dtype)
    # a formula may permute where a kernel does not
    assert_agrees(lambda *t: row(OURS, *t), lambda *t: row(LIBRARIES["torch"], *t).contiguous(), inputs)
    assert bool(launches) is row.launches


@pytest.mark.place("eager mode")
@every_layer
def test_layers_launch_the_kernels_of_their_row(device, launches, row):
    module, x = row.make().to(device), torch.randn(5, *row.sample, device=device, requires_grad=True)
    y = module(x)
    assert launches[0].startswith(row.kernels.split()[0])
    forward = len(launches)
    y.sum().backward()
    assert len(launches) > forward
    # the last is shared by all that add up rows
    shared = "column_sums", "batch_norm"
    assert all(name.startswith((*row.kernels.split(), *shared)) for name in launches)


def test_every_random_function_is_captured_in_a_graph():
    """On a GPU, by test_on_gpu.py."""
    assert {*graphs.MASKS} == {row.name for row in FUNCTIONS.values() if row.draws}


@pytest.mark.parametrize("name", graphs.MASKS)
def test_results_and_gradients_show_the_mask(device, name):
    x = graphs.input_of_masks(device)
    graphs.kept_by(*graphs.with_gradients(graphs.MASKS[name](x), [x])[-2:])


def test_the_libraries_have_every_function():
    for library in LIBRARIES.values():
        assert all(callable(getattr(library, row.name)) for row in FUNCTIONS.values())

import copy

import pytest
import torch
import torch.nn.functional as F
from positions import SHAPES, inputs_of
from support.reference import (
    DTYPES,
    ROUNDED,
    assert_accurate,
    assert_agrees,
    assert_derivatives,
    error,
    gradient_layouts,
)

import normreg


def permuting(x, *parameters):
    """timm's LayerNorm2d, in the memory format of x."""
    y = F.layer_norm(x.movedim(1, -1), x.shape[1:2], *parameters, 1e-6).movedim(-1, 1)
    return y.contiguous() if x.is_contiguous() else y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_permuting_layer(device, guarded_memory, launches, shape, dtype):
    inputs = [guarded_memory.place(t) for t in inputs_of(shape, dtype, device)]
    assert_agrees(normreg.functional.layer_norm_channels, permuting, inputs)
    assert launches


def test_the_kernels_that_the_shapes_take(device, launches):
    taken = set()
    for shape in SHAPES:
        launches.clear()
        x, *parameters = inputs_of(shape, torch.float32, device)
        normreg.functional.layer_norm_channels(x, *parameters).sum().backward()
        taken |= set(launches)
    assert taken == {
        "layer_norm_forward_kernel",
        "layer_norm_forward_chunks_kernel",
        "layer_norm_backward_kernel",
        "layer_norm_backward_sums_kernel",
        "column_sums_kernel",
    }


@pytest.mark.parametrize("shape", [(2, 17, 5, 13), (1, 2100, 3, 11), (2, 9, 2, 3, 4)], ids=str)
def test_channels_last_is_taken_as_rows_and_stays(device, shape):
    memory_format = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    inputs = inputs_of(shape, torch.float32, device)
    inputs[0] = inputs[0].detach().to(memory_format=memory_format).requires_grad_()
    assert_agrees(normreg.functional.layer_norm_channels, permuting, inputs)
    y = normreg.functional.layer_norm_channels(*inputs)
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("present", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shape", [(2, 17, 5, 13), (1, 2100, 3, 11)], ids=str)
def test_absent_parameters(device, shape, present):
    inputs = inputs_of(shape, torch.float32, device, present)
    assert_agrees(normreg.functional.layer_norm_channels, permuting, inputs)


@pytest.mark.parametrize("shape", [(2, 17, 5, 13), (1, 2100, 3, 11)], ids=str)
@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)], ids=str)
def test_gradient_of_any_subset(device, shape, wanted):
    inputs = inputs_of(shape, torch.float32, device)
    for tensor, want in zip(inputs, wanted):
        tensor.requires_grad_(bool(want))
    assert_agrees(normreg.functional.layer_norm_channels, permuting, inputs)


def test_layouts_of_the_incoming_gradient(device):
    inputs = inputs_of((2, 17, 5, 13), torch.float32, device)
    for _, dy in gradient_layouts(inputs[0].detach()):
        assert_agrees(normreg.functional.layer_norm_channels, permuting, inputs, dy)


def test_float32_parameters_beside_16_bits(device, launches):
    x = torch.randn(2, 24, 7, 8, device=device, dtype=torch.bfloat16)
    weight, bias = torch.randn(2, 24, device=device)
    y = normreg.functional.layer_norm_channels(x, weight, bias)
    assert y.dtype == torch.bfloat16
    assert launches == ["layer_norm_forward_kernel"]
    exact = permuting(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(y.double(), exact, rtol=ROUNDED[y.dtype], atol=2**-16)


def test_a_large_mean_costs_nothing(device):
    """The result for x + 2^18, which float32 holds exactly, is as exact as that for x."""
    x = torch.randint(-64, 64, (2, 40, 6, 11), device=device) / 16
    exact = permuting(x.double(), None, None)
    plain, moved = (normreg.functional.layer_norm_channels(t) for t in (x, x + 2**18))
    assert_accurate(moved, error(plain, exact), exact)


def test_a_positions_result_does_not_depend_on_the_others(device):
    x = torch.randn(2, 40, 6, 11, device=device)
    y = normreg.functional.layer_norm_channels(x)
    alone = normreg.functional.layer_norm_channels(x[1:, :, 2:3, 4:5].contiguous())
    torch.testing.assert_close(y[1:, :, 2:3, 4:5], alone, rtol=2**-22, atol=2**-22)


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 2, 3)], ids=str)
def test_derivatives(device, thorough, shape):
    inputs = inputs_of(shape, torch.float64, device)
    for order in (1, 2):
        assert_derivatives(normreg.functional.layer_norm_channels, inputs, thorough, order)


def test_second_derivative_where_dy_needs_no_gradient(device):
    results = []
    for operation in (normreg.functional.layer_norm_channels, permuting):
        torch.manual_seed(1)
        x, weight, bias = inputs_of((2, 6, 5), torch.float64, device)
        loss = (operation(x, weight, bias) + x**3).sum()
        (dx,) = torch.autograd.grad(loss, x, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), (x, weight)))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)


LAYERS = {3: normreg.LayerNorm1d, 4: normreg.LayerNorm2d, 5: normreg.LayerNorm3d}


@pytest.mark.parametrize("dimensions", LAYERS)
def test_layers(device, dimensions):
    layer = LAYERS[dimensions](6, device=device)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn((2, 6, 3, 4, 5)[:dimensions], device=device)
    torch.testing.assert_close(layer(x), permuting(x, layer.weight, layer.bias))
    assert layer.eps == 1e-6
    assert list(layer.state_dict()) == ["weight", "bias"]
    plain = LAYERS[dimensions](6, 1e-3, False, device=device)
    assert plain.weight is plain.bias is None
    torch.testing.assert_close(plain(x), F.layer_norm(x.movedim(1, -1), (6,), eps=1e-3).movedim(-1, 1))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    with pytest.raises(
        ValueError, match=rf"expected an input of {dimensions} dimensions, \(N, C, \*\), got shape \[2, "
    ):
        layer(x.flatten(1))


def test_replace_leaves_them_alone(device):
    model = torch.nn.Sequential(normreg.LayerNorm2d(4), torch.nn.LayerNorm(4))
    normreg.replace(model)
    assert [type(layer) for layer in model] == [normreg.LayerNorm2d, normreg.LayerNorm]


def test_where_the_kernel_does_not_apply(device, launches):
    x = torch.randn(2, 4, 3, device=device)
    empty = normreg.functional.layer_norm_channels(x[:0])
    assert empty.shape == (0, 4, 3)
    message = (
        r"a weight of shape \(4,\), one value for each channel of the input, got \(5,\): make the layer with"
    )
    with pytest.raises(ValueError, match=message):
        normreg.functional.layer_norm_channels(x, x.new_ones(5))
    with pytest.raises(ValueError, match=r"expected an \(N, C, \*\) input, got 1 dimensions"):
        normreg.functional.layer_norm_channels(x[0, 0])
    assert launches == []


def test_positions_are_read_once_and_written_once(device, launches):
    """Held tiles take one launch forward and two backward."""
    x, *parameters = inputs_of((2, 24, 7, 8), torch.float32, device)
    y = normreg.functional.layer_norm_channels(x, *parameters)
    assert len(launches) == 1
    y.sum().backward()
    assert len(launches) == 3

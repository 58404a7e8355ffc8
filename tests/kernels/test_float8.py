"""`layer_norm` and `rms_norm` in float8_e4m3fn: y8 and its scale, against float64 and torch's rounding."""

import pytest
import torch
from float8_rows import FLOAT8, KERNELS, LARGEST, LEAST_SCALE, bits, exactly, in_float8, inputs, rounded
from float8_rows import inference as inference
from support.reference import DTYPES, HALVES, IN_TILES, unit

from normreg.functional import float8
from normreg.kernels import layer_norm

every_norm = pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])


def found_scale(y):
    return (y.float().abs().nan_to_num(0, LARGEST).amax(-1, True) / LARGEST).clamp_min(LEAST_SCALE)


def half_a_unit(y):
    """Half the distance of y's neighbours in float8, which are 2^-9 apart near 0."""
    return 2.0 ** (y.abs().clamp_min(2.0**-6).log2().floor() - 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", [None, "one", "each"])
@pytest.mark.parametrize("cols", [1, 3, 100, 512, 1000, IN_TILES, HALVES, 2048])
@every_norm
def test_results_are_rounded_once(device, launches, name, cols, given, dtype):
    """Nothing but float32's arithmetic lies between float64 and the one rounding to float8."""
    x, *parameters = inputs(name, (2, 5, cols), cols, dtype, device)
    y = exactly(name, x, *parameters)
    scale = None
    if given:  # the largest numbers are beyond 448
        scale = y.abs().amax((0, 1, 2) if given == "one" else -1, given == "each").float() / 500
    y8, used = in_float8(name, x, *parameters, scale)
    assert (y8.dtype, y8.shape, y8.is_contiguous()) == (FLOAT8, x.shape, True)
    if given:
        assert used is scale
    else:
        assert (used.dtype, used.shape) == (torch.float32, (2, 5, 1))
        torch.testing.assert_close(used.double(), found_scale(y).double(), rtol=2**-20, atol=0)
    y = y / used.double()
    slack = 8 * unit(y, torch.float32)
    assert ((y8.double() - y.clamp(-LARGEST, LARGEST)).abs() <= half_a_unit(y) * (1 + 2**-16) + slack).all()
    assert set(launches) <= KERNELS
    assert len(launches) == 1


def every_number(device):
    """Numbers of float8, what lies halfway between neighbours, all of float16, and more, as float32."""
    codes = torch.arange(127, dtype=torch.uint8).view(FLOAT8).float()
    ties = (codes[:-1] + codes[1:]) / 2
    around = torch.stack([ties, ties * (1 + 2**-22), ties * (1 - 2**-22)]).flatten()
    halves = torch.arange(2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    positive = torch.cat([codes, around, halves, torch.tensor([448.1, 464, 1e30, 3e38])])
    both = torch.cat([positive, -positive])[: 2**16].to(device)
    return torch.where(both == 0, 0.0, both)  # 0 times a number has its sign


@every_norm
def test_every_number_is_rounded_as_torch_rounds(device, launches, name):
    """y is the bias, or the weight times rows of 1: by the sign of x, whose norm is exactly 1."""
    values = every_number(device).view(-1, 1024)[:, :1000]  # 1000 of each 1024, so that there is a tail
    ones = torch.ones_like(values[:1])
    one, codes = torch.ones((), device=device), set()
    for row in values:
        if name == "layer_norm":
            y8, _ = in_float8(name, ones, torch.zeros_like(row), row, one)
        else:
            y8, _ = in_float8(name, ones, row, None, one, eps=0.0)
        assert torch.equal(bits(y8[0]), bits(rounded(row, one)))
        codes |= {*y8.view(torch.uint8).unique().tolist()}
    assert codes >= {*range(256)} - {0x80, 0xFF}  # of NaN one, and -0 is not asked for
    assert len(launches) == len(values)


@pytest.mark.parametrize("cols", [100, IN_TILES, 2048])
@every_norm
def test_rows_that_are_no_ordinary_numbers(device, name, cols):
    """They are as the formula has them in float32, and none of them changes another row."""
    x, weight, bias = inputs(name, (8, cols), cols, torch.float32, device)
    plain = in_float8(name, x, weight, bias)
    x[1] = 0
    x[2, 3], x[3, cols - 1] = torch.nan, torch.inf
    x[4, 5] = 1e4
    x[5] *= 1e-30
    x[6] *= 1e15
    y8, scale = in_float8(name, x, weight, bias)
    if name == "rms_norm":
        assert torch.equal(y8[1].float(), torch.zeros(cols, device=device))
        assert scale[1] == torch.tensor(LEAST_SCALE)
    assert y8[2].float().isnan().all()
    assert torch.equal(scale[2], torch.tensor([LEAST_SCALE], device=device))
    for i in (0, 7):
        assert torch.equal(bits(y8[i]), bits(plain[0][i]))
        assert torch.equal(scale[i], plain[1][i])
    for i in (1, 4, 5, 6):
        y = exactly(name, x[i], weight, bias)
        assert (y / scale[i] - y8[i].double()).abs().max() <= 16.01
    in_torch, its_scale = float8._composed(x, (cols,), weight, bias, 1e-5, None, name == "layer_norm")
    torch.testing.assert_close(scale, its_scale, rtol=2**-20, atol=0)
    assert torch.equal(y8.float().isnan(), in_torch.float().isnan())
    weight[7], weight[8] = torch.nan, torch.inf
    y8, scale = in_float8(name, x[:1], weight, bias)
    assert scale.isinf().all()
    assert y8.float().isnan().nonzero()[:, 1].tolist() == [7, 8]
    weight[8] = 1
    y8, scale = in_float8(name, x[:1], weight, bias)  # NaN is one element's
    assert y8.float().isnan().nonzero()[:, 1].tolist() == [7]
    assert y8.float().nan_to_num(0).abs().max() == LARGEST


@pytest.mark.parametrize("cols", [3, 96, 512, IN_TILES, 2048])
@every_norm
def test_rows_of_a_slice_are_read_where_they_are_and_alone_give_the_same(device, monkeypatch, name, cols):
    read, real = [], layer_norm.launch.launch

    def noting(call, x, *tensors, **options):
        read.append(x.data_ptr())
        return real(call, x, *tensors, **options)

    monkeypatch.setattr(layer_norm.launch, "launch", noting)
    x, *parameters = inputs(name, (9, cols), cols, torch.bfloat16, device)
    whole = torch.full((9, cols + 16), torch.nan, device=device, dtype=torch.bfloat16)
    apart = whole[:, 8:-8].copy_(x)
    y8, scale = in_float8(name, apart, *parameters)
    assert read == [apart.data_ptr()]
    for other, its_scale in (
        in_float8(name, x, *parameters),
        in_float8(name, x.t().contiguous().t(), *parameters),
        map(torch.cat, zip(*(in_float8(name, row[None], *parameters) for row in x))),
    ):
        assert torch.equal(bits(y8), bits(other))
        assert torch.equal(scale, its_scale)


@pytest.mark.parametrize("dims", [1, 2, 3])
@every_norm
def test_shapes(device, launches, name, dims):
    x = torch.randn(2, 4, 6, device=device)
    y8, scale = in_float8(name, x, dims=dims)
    assert scale.shape == ((2, 4, 6)[: 3 - dims] + (1,) * dims)
    error = (y8.float() * scale - exactly(name, x, dims=dims)).abs()
    assert (error <= scale * 16.01).all()
    again, same = in_float8(name, x, scale=scale, dims=dims)
    assert same is scale
    assert torch.equal(bits(y8), bits(again))
    assert len(launches) == 2
    nothing, scale = in_float8(name, x[:0], dims=min(dims, 2))
    assert (nothing.dtype, nothing.shape, scale.shape[0]) == (FLOAT8, (0, 4, 6), 0)

"""RMSNorm: what it has beside other operations over rows, of which test_rows.py has the tests."""

import pytest
import torch
import torch.nn.functional as F
from over_rows import RMS_NORM
from support.reference import (
    DTYPES,
    HALVES,
    IN_TILES,
    WIDE,
    assert_accurate,
    assert_agrees,
    copies,
    error,
    run,
    unit,
)

import normreg
from normreg import functional
from normreg.functional import dispatch
from normreg.kernels import dtypes
from normreg.ops.rms_norm import rms_norm as rms_norm_to

IN_TILE_AND_CHUNKS = pytest.mark.parametrize("cols", [1, 3, 100, IN_TILES, HALVES, WIDE])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_eps_of_none_is_that_of_the_dtype_computed_in(device, dtype):
    """eps is as large as the mean square here, which the eps of another dtype would not be."""
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    x = (torch.randn(6, 40, device=device, dtype=torch.float64) * eps**0.5).to(dtype)
    exact = F.rms_norm(x.double(), (40,), eps=eps)
    theirs = F.rms_norm(x, (40,))
    assert_accurate(functional.rms_norm(x, (40,)), theirs, exact)
    assert_accurate(functional.rms_norm(x, (40,), eps=eps), theirs, exact)
    module = normreg.RMSNorm(40, device=device, dtype=dtype)
    assert module.eps is None
    assert torch.equal(module(x), functional.rms_norm(x, (40,)))


@IN_TILE_AND_CHUNKS
@pytest.mark.parametrize("eps", [None, 1e-5])
def test_rows_of_zeros_give_zeros(device, cols, eps):
    x, weight = RMS_NORM.inputs((3, cols), (cols,), torch.float32, device)
    with torch.no_grad():
        x[1] = 0.0
    y = functional.rms_norm(x, (cols,), weight, eps)
    assert torch.equal(y[1], torch.zeros(cols, device=device))
    dx, dweight = torch.autograd.grad(y, (x, weight), torch.randn_like(y))
    assert dx.isfinite().all()
    assert dweight.isfinite().all()
    assert_agrees(*RMS_NORM.functions((cols,), eps or torch.finfo(torch.float32).eps), [x, weight])


@IN_TILE_AND_CHUNKS
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (6e4, torch.float16),
        (1e16, torch.bfloat16),
        (1e16, torch.float32),
        (1e90, torch.float64),
    ],
    ids=str,
)
def test_squares_that_are_large(device, cols, size, dtype):
    """6e4 squared is no float16, and the squares are not computed in it."""
    inputs = RMS_NORM.inputs((3, cols), (cols,), dtype, device)
    with torch.no_grad():
        inputs[0].copy_(inputs[0].sign() * size)
    assert_agrees(*RMS_NORM.functions((cols,)), inputs)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and:UserWarning")
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_results_are_torchs(device, launches, dtype, weight_dtype):
    """Results have the input's dtype; the kernel takes the pairs of dtypes that LayerNorm's does."""
    x = torch.randn(3, 8, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(8, device=device, dtype=weight_dtype, requires_grad=True)
    theirs, ours = (
        run(f, [x, weight], torch.ones(3, 8, device=device))
        for f in (
            lambda x, weight: F.rms_norm(x, (8,), weight),
            lambda x, weight: functional.rms_norm(x, (8,), weight),
        )
    )
    assert [t.dtype for t in ours] == [t.dtype for t in theirs] == [dtype, dtype, weight_dtype]
    beside_16_bits = dtype.itemsize == 2 and weight_dtype == torch.float32
    assert bool(launches) == (dtype == weight_dtype or beside_16_bits)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and:UserWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast(device, launches, dtype):
    """Autocast gives float32 from 16 bits where torch's does: on a GPU, from torch 2.12 on."""
    x = torch.randn(5, 24, device=device, dtype=dtype)
    weight = torch.randn(24, device=device, dtype=torch.float64 if dtype == torch.float64 else None)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        theirs = F.rms_norm(x, (24,), weight)
        assert launches == []
        ours = functional.rms_norm(x, (24,), weight)
    assert launches == ["layer_norm_forward_kernel"]
    eps = torch.finfo(dtypes.compute_dtype(dtype)).eps
    assert_accurate(ours, theirs, F.rms_norm(x.double(), (24,), weight.double(), eps))


def test_autocast_is_known_of_the_installed_torch():
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    assert (version >= (2, 12)) == dispatch.AUTOCAST_RUNS_RMS_NORM


@pytest.mark.parametrize("cols", [40, IN_TILES])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_from_16_bits(device, dtype, cols):
    """What autocast asks of the kernel: no input is cast, and only dx is rounded to 16 bits."""
    x = torch.randn(7, cols, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(cols, device=device, requires_grad=True)
    dy = torch.randn(7, cols, device=device)
    results = run(lambda x, weight: rms_norm_to(x, weight, (cols,), 1e-5, torch.float32), [x, weight], dy)
    exact = run(lambda x, w: F.rms_norm(x, (cols,), w, 1e-5), copies([x, weight], torch.float64), dy.double())
    for result, truth, expected in zip(results, exact, (torch.float32, dtype, torch.float32), strict=True):
        assert result.dtype == expected
        assert error(result, truth) <= 4 * unit(truth, expected)


@pytest.mark.parametrize("present", [True, False], ids=["weight", "no weight"])
def test_module(device, present):
    theirs = torch.nn.RMSNorm((3, 4), eps=1e-3, elementwise_affine=present, device=device)
    ours = normreg.RMSNorm((3, 4), eps=1e-3, elementwise_affine=present, device=device)
    assert repr(ours) == repr(theirs)
    if present:
        torch.nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 4, device=device)
    assert error(ours(x=x), theirs.double()(x.double())) <= 2 * unit(theirs(x.double()), torch.float32)


def test_the_layer_has_its_eps(device):
    x = torch.randn(3, 8, device=device)
    ours, theirs = (library.RMSNorm(8, eps=0.5, device=device) for library in (normreg, torch.nn))
    torch.testing.assert_close(ours(x), theirs(x))

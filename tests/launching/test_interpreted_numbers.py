"""Sums, maxima, `tl.fma`, and casts from and to bfloat16, and to float8, in the interpreter: a GPU's."""

import pytest
import torch
import triton
import triton.language as tl

ALL_BITS = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
NUMBERS = ALL_BITS.view(torch.bfloat16)


@triton.jit
def cast_kernel(x_ptr, cast_ptr, stored_ptr, elements, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < elements, other=0.0)
    tl.store(cast_ptr + offsets, x.to(cast_ptr.dtype.element_ty), mask=offsets < elements)
    tl.store(stored_ptr + offsets, x, mask=offsets < elements)


def cast(x, dtype):
    """x as a kernel casts it and as it stores it, which are the same bits."""
    made, stored = (torch.empty(x.shape, dtype=dtype) for _ in range(2))
    cast_kernel[(triton.cdiv(x.numel(), 1024),)](x, made, stored, x.numel(), BLOCK=1024)
    assert torch.equal(bits(made), bits(stored))
    return made


def bits(x):
    return x.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[x.element_size()])


def ties():
    """(finite numbers of bfloat16, the next larger in magnitude, the middle in float64)."""
    magnitude = torch.arange(0x7F7F, dtype=torch.int32)
    pairs = [(magnitude + more).to(torch.int16).view(torch.bfloat16).double() for more in (0, 1)]
    below, above = (torch.cat([x, -x]) for x in pairs)
    return below, above, (below + above) / 2


def test_float32_rounds_to_nearest_even():
    drawn = torch.randint(-(2**31), 2**31, (2**18,)).to(torch.int32).view(torch.float32)
    x = torch.cat([drawn, ties()[2].float(), NUMBERS.float()])
    rounded = cast(x, torch.bfloat16)
    assert torch.equal(rounded.isnan(), x.isnan())
    right = bits(rounded) == bits(x.bfloat16())
    assert right[~x.isnan()].all()


@pytest.mark.parametrize("beside", [0.0, 1e-15, -1e-15, 1e-9, -1e-9, 1e-3, -1e-3])
def test_float64_is_rounded_once(beside):
    """A number next to a tie goes to the nearer side, even where float32 would make it the tie."""
    below, above, middle = ties()
    even = torch.where(bits(below.bfloat16()) % 2 == 0, below, above)
    expected = even if not beside else above if beside > 0 else below
    assert torch.equal(cast(middle * (1 + beside), torch.bfloat16).double(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_no_number_stays_so(dtype):
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 3.4e38, -3.4e38, 0.0, -0.0], dtype=dtype)
    made, expected = cast(x, torch.bfloat16), x.bfloat16()
    torch.testing.assert_close(made, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(made.signbit()[-2:], expected.signbit()[-2:])
    # with all its payload in the bits that are cut off
    nan = torch.tensor([0x7F800001, -0x7FFFFF], dtype=torch.int32).view(torch.float32)
    assert cast(nan.to(dtype), torch.bfloat16).isnan().all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_integers(dtype):
    x = torch.arange(-1000, 1000, dtype=dtype)
    assert torch.equal(cast(x, torch.bfloat16), x.bfloat16())


def test_every_number_of_bfloat16_comes_back():
    wide = cast(NUMBERS, torch.float32)
    assert torch.equal(bits(wide), bits(NUMBERS.float()))
    numbers = ~NUMBERS.isnan()
    assert torch.equal(bits(cast(wide, torch.bfloat16))[numbers], ALL_BITS[numbers])


def test_float8_rounds_to_nearest_even_and_saturates():
    """As torch does between -448 and 448; NaN has one code on a GPU."""
    drawn = torch.randint(-(2**31), 2**31, (2**16,)).to(torch.int32).view(torch.float32)
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (numbers[1:] + numbers[:-1]) / 2
    near = torch.cat(
        [numbers, ties, ties * (1 + 2**-23), ties * (1 - 2**-23), torch.tensor([464.0, torch.inf])]
    )
    x = torch.cat([drawn, NUMBERS.float(), near, -near, torch.randn(2**16) * 100])
    made, expected = cast(x, torch.float8_e4m3fn), x.clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(bits(made)[~x.isnan()], bits(expected)[~x.isnan()])
    assert (bits(made)[x.isnan()] == 0x7F).all()


@triton.jit
def maximum_kernel(x_ptr, y_ptr, made_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(made_ptr + at, tl.maximum(tl.load(x_ptr + at), tl.load(y_ptr + at)))


def test_a_maximum_is_of_the_numbers():
    nan = torch.nan
    x, y, made = torch.tensor([1.0, nan, 2.0, nan]), torch.tensor([nan, -3.0, 1.0, nan]), torch.empty(4)
    maximum_kernel[(1,)](x, y, made, BLOCK=4)
    torch.testing.assert_close(made, torch.tensor([1.0, -3.0, 2.0, nan]), equal_nan=True)


@triton.jit
def sums_kernel(x_ptr, sums_ptr, ROWS: tl.constexpr, COLS: tl.constexpr, AXIS: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :])
    if AXIS is None:
        tl.store(sums_ptr, tl.sum(x))
    else:
        sums = tl.sum(x, AXIS, keep_dims=True)
        tl.store(sums_ptr + tl.arange(0, sums.numel).reshape(sums.shape), sums)


def sums(x, axis):
    made = torch.empty(1 if axis is None else x.shape[1 - axis])
    sums_kernel[(1,)](x, made, *x.shape, axis)
    return made


@pytest.mark.parametrize("axis", [0, 1, None])
def test_sums_are_in_pairs(axis):
    """One after another, 4096 times 0.1 is wrong in the fifth digit."""
    x = torch.full((4096, 4) if axis == 0 else (4, 4096), 0.1)
    made = sums(x, axis)
    exact = x.double().sum(axis)
    assert ((made / exact - 1).abs() <= 8 * torch.finfo(torch.float32).eps).all()


def test_sums_along_any_axis_are_the_same_in_pairs():
    x = torch.randn(256, 8)
    assert torch.equal(sums(x, 0), sums(x.t().contiguous(), 1))


@triton.jit
def rounded_off_kernel(x_ptr, rest_ptr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    tl.store(rest_ptr + tl.arange(0, BLOCK), tl.fma(x, x, -(x * x)))


def test_fma_of_float32_rounds_once():
    """What x * x is rounded by, which is a float32."""
    x = torch.randn(1024)
    rest = torch.empty_like(x)
    rounded_off_kernel[(1,)](x, rest, BLOCK=1024)
    assert torch.equal(rest.double(), x.double() ** 2 - (x * x).double())
    assert rest.any()

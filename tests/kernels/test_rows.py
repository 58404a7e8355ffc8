"""What holds of every operation over rows: each test is run for each of them."""

import itertools

import pytest
import torch
from over_rows import LIKE_LAYER_NORM, NORMS
from support.reference import (
    DTYPES,
    HALVES,
    IN_TILES,
    RAGGED,
    WIDE,
    assert_accurate,
    assert_agrees,
    copies,
    in_every_layout,
    in_layout,
    run,
)

from normreg.kernels import tiling
from normreg.kernels.tiling import hardware
from normreg.kernels.tiling.rows import Rows

every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
like_layer_norm = pytest.mark.parametrize("norm", LIKE_LAYER_NORM.values(), ids=LIKE_LAYER_NORM)

# the row held by one warp, by several, in tiles in the forward, in chunks forward and backward
WIDTHS = (*RAGGED, 64, 1024, 4097, IN_TILES, HALVES, WIDE)


def subsets_of_inputs(first, least=0):
    """Each norm with every choice of its inputs from the first on, of which at least so many are taken."""
    for name, norm in NORMS.items():
        inputs = ("x", "weight", "bias")[first : 1 + norm.parameters]
        for taken in itertools.product([True, False], repeat=len(inputs)):
            if sum(taken) >= least:
                named = "+".join(itertools.compress(inputs, taken)) or "none"
                yield pytest.param(norm, taken, id=f"{name}-{named}")


@pytest.mark.some(12)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cols", WIDTHS)
@every_norm
def test_agrees_with_torch(norm, device, guarded_memory, cols, dtype):
    rows = 5 if cols > 1025 else 70
    inputs = [guarded_memory.place(t) for t in norm.inputs((rows, cols), (cols,), dtype, device)]
    assert_agrees(*norm.functions((cols,)), inputs)


@pytest.mark.parametrize("cols", [hardware.TILE_WORDS_BACKWARD + 8, hardware.TILE_WORDS_FORWARD + 1])
@every_norm
def test_rows_too_wide_to_be_held(norm, device, cols):
    assert_agrees(*norm.functions((cols,)), norm.inputs((3, cols), (cols,), torch.float32, device))


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 131])
@every_norm
def test_rows_beside_a_tile(norm, device, guarded_memory, rows):
    """cols = 64 makes tiles of 16 rows, and 131 rows two programs of the backward."""
    assert tiling.rows.layer_norm_forward_tile(Rows(1, 99, 64, False), torch.float32).rows == 16
    inputs = [guarded_memory.place(t) for t in norm.inputs((rows, 64), (64,), torch.float32, device)]
    assert_agrees(*norm.functions((64,)), inputs)


@pytest.mark.some(4)
@pytest.mark.parametrize(("cols", "dtype", "kernels"), [
    (5120, torch.bfloat16, ("forward_tiles", "backward_held")),
    (16384, torch.float32, ("forward_tiles", "backward_sums", "backward")),
    (16384, torch.float16, ("forward_tiles", "backward_tiles")),
    (65536, torch.bfloat16, ("forward_tiles", "backward_sums", "backward")),
    (65544, torch.bfloat16, ("forward_chunks", "backward_sums", "backward")),
    (32772, torch.float32, ("forward_chunks", "backward_sums", "backward")),
    (8193, torch.bfloat16, ("forward", "backward_sums", "backward")),
], ids=str)  # fmt: skip
@like_layer_norm
def test_wide_rows(norm, device, launches, cols, dtype, kernels):
    assert_agrees(*norm.functions((cols,)), norm.inputs((1, cols), (cols,), dtype, device))
    assert launches == [*(f"layer_norm_{kernel}_kernel" for kernel in kernels), "column_sums_kernel"]


@pytest.mark.some(6)
@pytest.mark.parametrize(("rows", "cols", "dtype"), [
    (3, 768, torch.bfloat16), (37, 1024, torch.bfloat16), (23, 1160, torch.float16),
    (9, 3840, torch.bfloat16), (9, 4096, torch.float16), (5, 5120, torch.bfloat16), (3, 8192, torch.bfloat16),
], ids=str)  # fmt: skip
@like_layer_norm
def test_rows_held_by_the_backward(norm, device, launches, rows, cols, dtype):
    """In two tiles and in three, all of their columns or not; all rows of the last step or not."""
    assert_agrees(*norm.functions((cols,)), norm.inputs((rows, cols), (cols,), dtype, device))
    assert launches[-2:] == ["layer_norm_backward_held_kernel", "column_sums_kernel"]


@pytest.mark.parametrize(("norm", "wanted"), [*subsets_of_inputs(first=0, least=1)])
def test_gradient_of_any_subset_of_held_rows(norm, device, wanted, monkeypatch):
    """Four programs take three rows at once at most, though a tile has eight."""
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 4)
    inputs = norm.inputs((9, 776), (776,), torch.bfloat16, device)
    for t, want in zip(inputs, wanted, strict=True):
        t.requires_grad_(want)
    assert_agrees(*norm.functions((776,)), inputs)


@pytest.mark.parametrize("cols", [24, IN_TILES, HALVES, WIDE])
@pytest.mark.parametrize(("norm", "present"), [*subsets_of_inputs(first=1)])
def test_absent_parameters(norm, device, cols, present):
    inputs = norm.inputs((3, cols), (cols,), torch.float32, device, present)
    assert_agrees(*norm.functions((cols,)), inputs)


@pytest.mark.parametrize("cols", [24, IN_TILES, HALVES, WIDE])
@pytest.mark.parametrize(("norm", "wanted"), [*subsets_of_inputs(first=0, least=1)])
def test_gradient_of_any_subset(norm, device, cols, wanted):
    dtype = torch.bfloat16 if cols == IN_TILES else torch.float32
    inputs = norm.inputs((33 if cols == 24 else 5, cols), (cols,), dtype, device)
    for t, want in zip(inputs, wanted, strict=True):
        t.requires_grad_(want)
    assert_agrees(*norm.functions((cols,)), inputs)


@pytest.mark.parametrize(("shape", "normalized_shape", "layout"), in_every_layout(
    ((5,), (5,)), ((2, 3, 4), (4,)), ((2, 3, 4), (3, 4)), ((2, 3, 4), (2, 3, 4)), ((2, 3, 4, 5), (4, 5)),
    ((2, 2, 3, 2, 5), (2, 5)),
))  # fmt: skip
@like_layer_norm
def test_ranks(norm, device, shape, normalized_shape, layout):
    inputs = norm.inputs(shape, normalized_shape, torch.float32, device)
    assert_agrees(*norm.functions(normalized_shape), inputs, in_layout(layout, inputs[0]))


@pytest.mark.parametrize("view", [
    lambda x: x.transpose(0, 1), lambda x: x[:, ::2], lambda x: x[..., ::2], lambda x: x.flip(0),
    lambda x: x[:1].expand(4, -1, -1),
], ids=["transposed", "rows sliced", "cols sliced", "flipped", "expanded"])  # fmt: skip
@every_norm
def test_input_strides(norm, device, view):
    x = view(torch.randn(4, 6, 8, device=device)).detach().requires_grad_()
    cols = x.shape[-1]
    parameters = (torch.randn(*shape, 2, device=device)[..., 0] for shape in norm.parameter_shapes((cols,)))
    assert_agrees(*norm.functions((cols,)), [x, *(t.requires_grad_() for t in parameters)])


@pytest.mark.parametrize("cols", [100, IN_TILES, HALVES, WIDE])
@pytest.mark.parametrize(("mean", "std", "dtype"), [
    (1e2, 1.0, torch.float16), (1e4, 1.0, torch.float32), (1e6, 1.0, torch.float32),
    (1e4, 1e-3, torch.float32), (0.0, 1e-3, torch.float32), (1e6, 1e-3, torch.float64),
])  # fmt: skip
@every_norm
def test_large_means(norm, device, cols, mean, std, dtype):
    inputs = norm.inputs((2, cols), (cols,), dtype, device, mean=mean, std=std)
    assert_agrees(*norm.functions((cols,)), inputs)


@pytest.mark.parametrize("cols", [24, IN_TILES, HALVES, WIDE])
@every_norm
def test_a_subnormal_variance_is_no_zero(norm, device, cols):
    """Compiled code has instructions that take it for one, and return an infinite rstd."""
    x, *_ = norm.inputs((3, cols), (cols,), torch.float32, device, std=2e-20)
    ours, theirs = norm.functions((cols,), eps=0.0)
    absent = [None] * norm.parameters
    # squares of 4e-40 are multiples of 1.4e-45
    torch.testing.assert_close(ours(x, *absent).double(), theirs(x.double(), *absent), rtol=1e-4, atol=1e-6)


@every_norm
def test_float16_near_its_maximum(norm, device):
    x = (torch.rand(8, 300, device=device) * 100 + 6.5e4 - 200).half().requires_grad_()
    assert_agrees(*norm.functions((300,)), [x] + [None] * norm.parameters)


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_norm
def test_eps(norm, device, eps, dtype):
    inputs = norm.inputs((6, 40), (40,), dtype, device, std=eps**0.5 or 1.0)
    assert_agrees(*norm.functions((40,), eps), inputs)


@pytest.mark.parametrize("cols", [65, 1000, IN_TILES])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_norm
def test_float32_parameters_beside_16_bits(norm, device, dtype, cols):
    x, *parameters = norm.inputs((9, cols), (cols,), dtype, device)
    inputs = [x, *(t.detach().float().requires_grad_() for t in parameters)]
    ours, theirs = norm.functions((cols,))
    dy = torch.randn(9, cols, device=device, dtype=dtype)
    results = run(ours, inputs, dy)
    exact = run(theirs, copies(inputs, torch.float64), dy.double())
    torchs = run(theirs, copies(inputs, torch.float32), dy.float())  # which takes no two dtypes
    for result, other, truth in zip(results, torchs, exact, strict=True):
        assert_accurate(result, other.to(result.dtype), truth)


@every_norm
def test_a_row_does_not_depend_on_the_others(norm, device):
    x, *parameters = norm.inputs((200, 96), (96,), torch.float32, device)
    ours, _ = norm.functions((96,))
    together = ours(x, *parameters)
    alone = torch.cat([ours(row[None], *parameters) for row in x[::20]])
    assert torch.equal(together[::20], alone)


@pytest.mark.parametrize("cols", [1, 3, 7, 41, 100])
def test_equal_gradients_of_a_row_have_no_dx(device, cols):
    """As those of a sum; rstd is 316 where a row is constant, and would multiply what c2 is off by."""
    x = torch.full((5, cols), 3.0, device=device, requires_grad=True)
    dy = torch.arange(1.0, 6.0, device=device)[:, None].expand(5, cols)  # sums of which are exact
    (dx,) = torch.autograd.grad(LIKE_LAYER_NORM["layer_norm"].functions((cols,))[0](x, None, None), x, dy)
    assert not dx.any()


@every_norm
def test_many_partial_sums(norm, device, monkeypatch):
    """As many programs as a large GPU runs: more partial sums than the finish adds at a time."""
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 64)
    rows = 16 * 8 * 33
    tile = tiling.rows.layer_norm_backward_tile(Rows(1, rows, 64, False), torch.float32)
    programs = tiling.partials.row_programs(tile, -(-rows // tile.rows), 1, device)
    monkeypatch.setattr(tiling.partials, "COLUMN_SUMS_WORDS", 256)
    assert programs > tiling.partials.column_sums_tile(64, device).rows
    assert_agrees(*norm.functions((64,)), norm.inputs((rows, 64), (64,), torch.float32, device))


@every_norm
def test_two_backward_passes_are_equal(norm, device):
    inputs = norm.inputs((300, 64), (64,), torch.float32, device)
    y = norm.functions((64,))[0](*inputs)
    dy = torch.randn_like(y)
    first = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    second = torch.autograd.grad(y, inputs, dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@every_norm
def test_statistics_are_saved_in_float32(norm, device):
    saved = []
    x, weight, *_ = norm.inputs((12, 32), (32,), torch.bfloat16, device)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        norm.functions((32,))[0](x, weight)
    inputs = [(torch.bfloat16, x.numel()), (torch.bfloat16, weight.numel())]
    assert [(t.dtype, t.numel()) for t in saved] == [*inputs, (torch.float32, 12 * norm.statistics)]


@every_norm
def test_without_gradients_nothing_is_saved(norm, device):
    x, ours = torch.randn(4, 8, device=device, requires_grad=True), norm.functions((8,))[0]
    with torch.no_grad():
        assert not ours(x).requires_grad
    with torch.inference_mode():
        assert ours(x).is_inference()

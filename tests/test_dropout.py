import importlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from reference import DTYPES, gradient_layouts
from torch.utils.checkpoint import checkpoint

import normreg
from normreg.kernels import dropout as kernels
from normreg.kernels import launch, tiling
from normreg.kernels.device.random import keep_mask
from normreg.ops import seed

dropout = normreg.functional.dropout


def mask(shape, p, seed_, device, dtype=torch.float32):
    return kernels.dropout(torch.ones(shape, device=device, dtype=dtype), p, seed_) != 0


def assert_rate(kept, p, sigmas=4):
    """The number of kept elements is binomial."""
    n = kept.numel()
    assert abs(kept.sum().item() - n * (1 - p)) <= sigmas * math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("elements", [1, 3, 17, 1000, 1024, 1025, 2048, 2056, 4099])
def test_kept_elements_are_scaled_and_gradients_share_the_mask(device, guarded_memory, elements, dtype):
    x = guarded_memory.place(torch.randn(elements, device=device).to(dtype).requires_grad_())
    dy = guarded_memory.place(torch.randn(elements, device=device).to(dtype))
    before = x.detach().clone(), dy.clone()
    y = dropout(x, 0.25)
    (dx,) = torch.autograd.grad(y, x, dy)
    kept = y != 0
    for result, source in ((y, before[0]), (dx, before[1])):
        expected = torch.where(kept, source.double() / 0.75, 0.0)
        # one rounding, which the interpreter does by truncation in bfloat16
        torch.testing.assert_close(result.double(), expected, rtol=torch.finfo(dtype).eps, atol=0)
    assert torch.equal(x, before[0])
    assert torch.equal(dy, before[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("p", [0.004, 0.1, 0.5, 0.9, 0.997])
def test_rate(device, p, dtype):
    assert_rate(mask(2**17, p, 1234, device, dtype), p)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_the_mask_is_the_documented_function_of_seed_and_index(device, dtype):
    """Bits of Philox4x32-10 against an implementation in Python integers."""
    bits, seed_ = (16 if dtype == torch.float16 else 32), 0x123456789ABCDEF0 >> 1

    def philox(counter):
        c, k = [counter, 0, 0, 0], [seed_ & 0xFFFFFFFF, seed_ >> 32]
        for _ in range(10):
            low, high = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [high >> 32 ^ c[1] ^ k[0], high & 0xFFFFFFFF, low >> 32 ^ c[3] ^ k[1], low & 0xFFFFFFFF]
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        return c

    fields = []
    for call in range(64):
        for word in philox(call):
            fields += [word & 0xFFFF, word >> 16] if bits == 16 else [word]
    threshold = 2**bits - round(0.3 * 2**bits)
    expected = torch.tensor([field < threshold for field in fields], device=device)
    assert torch.equal(mask(len(fields), 0.3, seed_, device, dtype), expected)


def test_philox_matches_its_published_vector(device):
    """Key and counter 0 of Philox4x32-10: 6627e8d5 e169c58d bc57ac4c 9b00dbd8 (Random123)."""
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    for p in (0.2, 0.4, 0.6, 0.8):
        threshold = 2**32 - round(p * 2**32)
        assert mask(4, p, 0, device).tolist() == [word < threshold for word in words]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_tiles_do_not_change_the_mask(device, dtype, monkeypatch):
    masks = []
    for calls in (32, 256, 1024):
        monkeypatch.setattr(tiling.elements, "dropout_calls", lambda calls=calls: calls)
        launch.forget_plans()
        masks.append(mask(5000, 0.3, 7, device, dtype))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("view", [
    lambda x: x.t().contiguous().t(), lambda x: torch.stack([x, x])[1],
    lambda x: torch.cat([x, x], 1)[:, ::2],
], ids=["transposed", "offset", "strided"])  # fmt: skip
def test_layout_does_not_change_the_mask(device, view):
    x = torch.ones(64, 48, device=device)
    torch.manual_seed(3)
    expected = dropout(x, 0.5) != 0
    torch.manual_seed(3)
    y = dropout(view(x), 0.5)
    assert torch.equal(y != 0, expected)
    assert y.stride() == F.dropout(view(x), 0.5).stride()


def test_gradient_layouts(device):
    x = torch.randn(2, 3, 4, 5, device=device, requires_grad=True)
    for layout, dy in gradient_layouts(x):
        y = dropout(x, 0.5)
        (dx,) = torch.autograd.grad(y, x, dy)
        assert torch.equal(dx, torch.where(y != 0, dy * 2, 0.0)), layout


def test_masks_of_two_calls_are_independent(device):
    x = torch.ones(2**16, device=device)
    a, b = (dropout(x, 0.5) != 0 for _ in range(2))
    assert_rate(a == b, 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("lag", [1, 2, 3, 4, 7, 8, 32, 1024, 4096])
def test_neighbours_are_independent(device, lag, dtype):
    kept = mask(2**16, 0.5, 99, device, dtype)
    assert_rate(kept[lag:] == kept[:-lag], 0.5)


def assert_chi_square(counts, expected, sigmas=4):
    """Of many counts, the sum is normal: its mean is the degrees of freedom, its variance twice that."""
    freedom = len(counts) - 1
    assert abs(((counts - expected) ** 2 / expected).sum() - freedom) <= sigmas * math.sqrt(2 * freedom)


def test_nothing_is_repeated(device, monkeypatch):
    """Of the 2^22 windows of 64 bits in 2^25 elements, a chance of 2^-21 that any two are equal.

    All bytes are as frequent, and runs of one decision are halved in number by each element more.
    """
    if launch.INTERPRET:
        monkeypatch.setattr(tiling.elements, "dropout_calls", lambda: 2**17)
    kept = mask(2**25, 0.5, 31, device)
    assert_rate(kept, 0.5)
    octets = np.packbits(kept.cpu().numpy())
    assert_chi_square(np.bincount(octets, minlength=256), len(octets) / 256)
    ends = np.flatnonzero(np.diff(kept.cpu().numpy()))
    runs = np.bincount(np.minimum(np.diff(ends), 17))[1:]
    shares = 2.0 ** -np.arange(1, 18)
    shares[-1] *= 2  # of 17 elements and of more
    assert_chi_square(runs, runs.sum() * shares, sigmas=6)  # of 17 counts it is still skewed
    windows = np.lib.stride_tricks.sliding_window_view(octets, 8).copy().view(np.uint64)
    assert len(np.unique(windows)) == len(windows) == 2**22 - 7


def test_seeds_are_independent(device):
    masks = torch.stack([mask(2**14, 0.5, seed_, device) for seed_ in (0, 1, 2, 2**32, 2**62 + 1)])
    for i in range(len(masks)):
        for j in range(i):
            assert_rate(masks[i] == masks[j], 0.5)


def test_manual_seed_decides_the_mask(device):
    x = torch.ones(4096, device=device)
    torch.manual_seed(5)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.5), first)
    assert torch.equal(dropout(x, 0.5), second)
    assert not torch.equal(first, second)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # of several GPUs it warns
        inside = dropout(x, 0.5)
    assert torch.equal(dropout(x, 0.5), inside)


def test_the_mask_is_not_torchs_own_random_numbers(device):
    """The same generator state must not give dropout and initialisation the same bits."""
    torch.manual_seed(5)
    numbers = torch.rand(2**14, device=device)
    torch.manual_seed(5)
    kept = dropout(torch.ones(2**14, device=device), 0.5) != 0
    assert_rate(kept == (numbers < 0.5), 0.5)


def test_seeds_spread_over_63_bits(device):
    seeds = [seed.draw(device) for _ in range(256)]
    assert len(set(seeds)) == 256
    for bit in range(63):
        ones = sum(s >> bit & 1 for s in seeds)
        assert abs(ones - 128) < 5 * 8, f"bit {bit}"
    assert all(0 <= s < 2**63 for s in seeds)


def test_a_seed_in_memory_is_the_same_as_its_number(device):
    """As under CUDA-graph capture, where the seed is a tensor that each replay fills anew."""
    x = torch.randn(3000, device=device)
    seed_ = 2**61 + 12345
    in_memory = torch.tensor(seed_, device=device)
    assert torch.equal(kernels.dropout(x, 0.3, in_memory), kernels.dropout(x, 0.3, seed_))
    rule = normreg.ops.dropout.Rule(0.3)
    y = normreg.ops.dropout.DropoutFunction.apply(x.requires_grad_(), in_memory, *rule, False)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(dx != 0, y != 0)


class GeneratorOfAGpu:
    """The part of a CUDA generator's interface that a seed is drawn with; handles share a state."""

    device = torch.device("cuda")

    def __init__(self, seed, state=None):
        self.state = state or {"seed": seed, "offset": 0}
        self.rnns_keep_their_state = True

    def initial_seed(self):
        return self.state["seed"]

    def get_offset(self):
        return self.state["offset"]

    def set_offset(self, offset):
        assert offset % 4 == 0
        self.set_state({"seed": self.initial_seed(), "offset": offset})

    def get_state(self):
        return dict(self.state)

    def set_state(self, state):
        self.state.update(state)
        self.rnns_keep_their_state = False

    def graphsafe_get_state(self):
        return GeneratorOfAGpu(None, self.state)


def test_a_gpus_seed_follows_its_generator_without_a_launch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch, "randint", None)
    generators = [GeneratorOfAGpu(5), GeneratorOfAGpu(5), GeneratorOfAGpu(6)]
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    draws = [[seed.draw(torch.device("cuda", i)) for _ in range(100)] for i in range(3)]
    assert draws[0] == draws[1]
    assert len({*draws[0], *draws[2]}) == 200
    assert all(isinstance(s, int) and 0 <= s < 2**63 for s in draws[0])
    explicit = GeneratorOfAGpu(5)
    assert seed.draw(torch.device("cuda", 2), explicit) == draws[0][0]
    assert all(generator.rnns_keep_their_state for generator in (*generators, explicit))
    explicit.set_offset(0)  # as checkpointing restores it
    assert seed.draw(torch.device("cuda", 2), explicit) == draws[0][0]


def test_a_mask_that_is_asked_for_leaves_the_generator_as_it_was():
    """Also its record that cuDNN's RNNs hold a state of their dropout."""
    generator = GeneratorOfAGpu(5)
    module = importlib.import_module("normreg.functional.masks")  # the package's attribute is the function
    with module._generator_kept(torch.device("cuda", 0), generator):
        seed.handle(generator).set_offset(8)
    assert generator.get_offset() == 0
    assert generator.rnns_keep_their_state


def test_under_capture_the_seed_is_drawn_on_the_device(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch, "randint", lambda *size, **options: calls.append((size, options)) or "tensor")
    cuda = torch.device("cuda", 0)
    assert seed.draw(cuda) == "tensor"
    assert calls == [((2**63 - 1, ()), dict(device=cuda))]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_recomputes_the_mask(device, use_reentrant):
    x = torch.randn(1000, device=device, requires_grad=True)
    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(11)
        block = lambda x: dropout(x * 2, 0.5) ** 2  # noqa: E731
        y = checkpoint(block, x, use_reentrant=use_reentrant) if checkpointed else block(x)
        grads.append(torch.autograd.grad(y.sum(), x)[0] if not use_reentrant else None)
        if use_reentrant:
            x.grad = None
            y.sum().backward()
            grads[-1] = x.grad
    assert torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_p_one(device, dtype):
    x = torch.tensor([1.0, math.inf, -math.inf, math.nan], device=device, dtype=dtype, requires_grad=True)
    y = dropout(x, 1.0)
    (dx,) = torch.autograd.grad(y, x, torch.full_like(x, math.inf))
    assert torch.equal(y, torch.zeros_like(x))
    assert torch.equal(dx, torch.zeros_like(x))


def test_p_zero_and_evaluation_return_the_input(device):
    x = torch.randn(5, device=device)
    module = normreg.Dropout(0.5)
    assert dropout(x, 0.0) is x
    assert dropout(x, 0.5, training=False) is x
    assert module.eval()(x) is x
    assert module.train()(x) is not x


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("p", [1e-8, 1e-5, 1e-3, 1 / 3, 1 - 1e-3, 1 - 1e-7, 1 - 1e-12])
def test_the_scale_is_exact_for_the_rounded_p(device, p, dtype, monkeypatch):
    """E[y] = x: the scale times the probability of being kept is 1, and p is close to what was asked for."""
    seen = {}
    original = launch.launch

    def note(plan, *tensors, **options):
        *_, keep_threshold, scale, shift, dropped = plan.numbers
        seen.update(keep=keep_threshold / 2 ** plan.constants["BITS"], scale=scale)
        assert (shift, dropped) == (0, 0)
        original(plan, *tensors, **options)

    monkeypatch.setattr(launch, "launch", note)
    y = dropout(torch.ones(64, device=device, dtype=dtype), p)
    assert math.isclose(seen["keep"] * seen["scale"], 1.0, rel_tol=2**-52)
    assert 0 < seen["keep"] < 1
    assert math.isclose(1 - seen["keep"], p, rel_tol=2**-8, abs_tol=2**-32)
    assert math.isclose(seen["keep"], 1 - p, rel_tol=2**-8, abs_tol=2**-32)
    assert not y.isnan().any()


def test_dropped_inf_and_nan_are_zero(device):
    x = torch.tensor([math.inf, -math.inf, math.nan], device=device).repeat(200)
    y = dropout(x, 0.5)
    kept = y != 0
    assert 200 < kept.sum() < 400
    assert torch.equal(y[kept].nan_to_num(7.0), x[kept].nan_to_num(7.0))


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.t()], ids=["contiguous", "transposed"])
def test_inplace(device, view):
    leaf = torch.randn(30, 20, device=device, requires_grad=True)
    x = view(leaf * 1)
    before, version = x.detach().clone(), x._version
    y = dropout(x, 0.5, inplace=True)
    assert y is x
    assert x._version > version
    kept = x != 0
    assert torch.equal(x, torch.where(kept, before * 2, 0.0))
    dy = torch.randn_like(x)
    (dx,) = torch.autograd.grad(x, leaf, dy)
    assert torch.equal(view(dx), torch.where(kept, dy * 2, 0.0))


def test_inplace_without_gradient(device):
    x = torch.ones(100, device=device)
    version = x._version
    assert dropout(x, 0.5, inplace=True) is x
    assert x._version == version + 1
    assert set(x.unique().tolist()) == {0.0, 2.0}


def test_inplace_is_seen_by_autograd(device):
    leaf = torch.randn(10, device=device, requires_grad=True)
    x = leaf.exp()  # saves its result
    dropout(x, 0.5, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


def test_nothing_is_saved(device):
    saved = []
    x = torch.randn(100, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        dropout(x, 0.5)
    assert saved == []


def test_backward_twice_and_double_backward(device):
    x = torch.randn(50, device=device, requires_grad=True)
    y = dropout(x, 0.5)
    kept = y != 0
    first, second = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (g,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    (gg,) = torch.autograd.grad(g.sum(), x)
    assert torch.equal(gg, torch.where(kept, torch.tensor(8.0, device=device), 0.0))


@triton.jit
def keep_mask_kernel(y_ptr, first: tl.int64, CALLS: tl.constexpr):
    threshold = tl.full([], 2**31, tl.int64)
    keep = keep_mask(7, first + tl.arange(0, CALLS).to(tl.int64), threshold, 32)
    tl.store(y_ptr + tl.arange(0, CALLS * 4), keep.to(tl.int32))


def test_far_elements_have_their_own_bits(device):
    """The counter has 64 bits: an element and the one 2^34 further on do not share a Philox call."""
    masks = torch.empty(3, 4096, dtype=torch.int32, device=device)
    for y, first in zip(masks, (0, 2**32, 2**40), strict=True):
        keep_mask_kernel[(1,)](y, first, CALLS=1024)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert_rate(masks[i] == masks[j], 0.5)

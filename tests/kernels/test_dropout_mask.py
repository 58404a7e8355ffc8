"""The mask of dropout: a documented function of seed and index, and random; where its seed comes from."""

import importlib
import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from support.philox import philox_in_python

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("p", [0.004, 0.1, 0.5, 0.9, 0.997])
def test_rate(device, p, dtype):
    assert_rate(mask(2**17, p, 1234, device, dtype), p)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_the_mask_is_the_documented_function_of_seed_and_index(device, dtype):
    """Bits of Philox4x32-10 against an implementation in Python integers."""
    bits, seed_ = (16 if dtype == torch.float16 else 32), 0x123456789ABCDEF0 >> 1
    fields = []
    for call in range(64):
        for word in philox_in_python(seed_, call):
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
        launch.forget()
        masks.append(mask(5000, 0.3, 7, device, dtype))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


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
    """The sum over many counts is normal: its mean is the degrees of freedom, its variance twice that."""
    freedom = len(counts) - 1
    assert abs(((counts - expected) ** 2 / expected).sum() - freedom) <= sigmas * math.sqrt(2 * freedom)


def test_nothing_is_repeated(device, monkeypatch):
    """No two of the 2^22 windows of 64 bits in 2^25 elements are equal; by chance two would be once in 2^21.

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
    """A seed is in memory under CUDA-graph capture, where each replay fills it anew."""
    x = torch.randn(3000, device=device)
    seed_ = 2**61 + 12345
    in_memory = torch.tensor(seed_, device=device)
    assert torch.equal(kernels.dropout(x, 0.3, in_memory), kernels.dropout(x, 0.3, seed_))
    rule = normreg.ops.dropout.Rule(0.3)
    y = normreg.ops.dropout.under_mask(x.requires_grad_(), in_memory, *rule, False)
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
    """The generator also keeps its record that cuDNN's RNNs hold a state of their dropout."""
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
    assert calls == [((2**63 - 1, ()), dict(device=cuda, generator=None))]


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

"""What is dropped and how that is decided, as the kernels take it.

keep_threshold = 2^bits - round(p 2^bits)       keep = keep_threshold / 2^bits
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from normreg.kernels import tiling
from normreg.kernels.device.random import GROUP_BITS

Constants: TypeAlias = Callable[[float], tuple[float, float, float]]  # (scale, shift, dropped), of keep
ALPHA = -1.7580993408473766  # SELU's value at minus infinity


def scaled(keep: float) -> tuple[float, float, float]:
    """(scale, shift, dropped) of dropout."""
    return 1 / keep, 0.0, 0.0


def unscaled(keep: float) -> tuple[float, float, float]:
    """(scale, shift, dropped) where what is kept stays as it is."""
    return 1.0, 0.0, 0.0


def alpha(keep: float) -> tuple[float, float, float]:
    """(scale, shift, dropped) of alpha dropout."""
    a = (keep * (1 + ALPHA**2 * (1 - keep))) ** -0.5
    return a, a * ALPHA * (1 - keep), a * ALPHA * keep


def layer_constants(
    p: float, bits: int, constants: Constants, linear: bool
) -> tuple[int, float, float, float]:
    """keep_threshold, scale, shift and dropped; `linear` without the two that do not depend on x."""
    cut = 2**bits if p == 1 else min(max(round(p * 2**bits), 1), 2**bits - 1)
    keep_threshold = 2**bits - cut
    scale, shift, dropped = constants(keep_threshold / 2**bits) if keep_threshold else (0.0, 0.0, 0.0)
    return (keep_threshold, scale, 0.0, 0.0) if linear else (keep_threshold, scale, shift, dropped)


class Drop(NamedTuple):
    """What is dropped of a branch before a residual is added, the same at every call."""

    p: float  # the probability of 0
    bits: int  # random bits of a decision; 0 where nothing is dropped
    shared: bool = False  # whether a sample has one decision, rather than each element
    scaled: bool = True  # whether what is kept is divided by the probability of being kept

    def numbers(self, rows: int, samples: int) -> tuple[int, int, float]:
        """rows_per_sample, keep_threshold and scale."""
        if self.bits == 0:
            return rows // samples, 0, 1.0
        constants = scaled if self.scaled else unscaled
        keep_threshold, scale, *_ = layer_constants(self.p, self.bits, constants, linear=True)
        return rows // samples, keep_threshold, scale

    def samples_of(self, x: Tensor, row_scale: Tensor | None) -> int:
        """How many different decisions or row scales there are; the rows of x are a multiple of it."""
        if self.shared:
            return x.shape[0]
        return 1 if row_scale is None else row_scale.numel()


def of_elements(p: float, dtype: torch.dtype) -> Drop:
    """Dropout of a tensor of the dtype."""
    return Drop(p, tiling.elements.dropout_bits(dtype, p) if p else 0)


def of_samples(p: float, scaled: bool) -> Drop:
    """Stochastic depth."""
    return Drop(p, GROUP_BITS, True, scaled)


def seed_arguments(seed: int | Tensor | None, device: torch.device) -> tuple[Tensor | None, int]:
    """seed_ptr and seed as kernels take them, of an int, an int64 tensor, or None where nothing is drawn.

    A kernel adds what seed_ptr points to, 0 beside an int: with and without a tensor it is one variant, so a
    CUDA graph's capture after steps in eager mode meets no kernel that was not loaded before.
    """
    if seed is None:
        return None, 0
    return (seed, 0) if isinstance(seed, Tensor) else (_zero(device), seed)


@functools.cache
def _zero(device: torch.device) -> Tensor:
    """An int64 zero of the device, which any stream may read."""
    zero = torch.zeros((), dtype=torch.int64, device=device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return zero

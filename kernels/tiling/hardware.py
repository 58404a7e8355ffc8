"""What every tile is measured by: the device, its warps and registers, and the width of an access."""

import functools
import math

import torch
import triton

from normreg.kernels import cpu

# A program costs the interpreter milliseconds whatever its size, so there a program takes this many
# times the rows or elements. The test suite sets it to 1: what it checks are the tiles of the GPU.
INTERPRETER_TILE_SCALE = 64


def tile_scale() -> int:
    """How many times the rows or elements of a GPU's tile a tile has: 1 but in the interpreter."""
    return INTERPRETER_TILE_SCALE if cpu.KERNELS == "interpreter" else 1


def words_of(compute_dtype: torch.dtype) -> int:
    """32-bit words of an element."""
    return compute_dtype.itemsize // 4


# 32-bit words of a row that a program holds in one tile, in registers; an element of float64 is two.
TILE_WORDS_FORWARD = 16384  # 32 warps x 16 words: 51 registers
TILE_WORDS_BACKWARD = 8192  # 16 warps x 16 words: 128 registers, with both column sums
WARP_TILE = 1024  # words of one warp in the forward: its reductions need no barrier
CHANNEL_TILE_WIDTH = 64  # channels of a tile at most: 128 bytes of a channels-last position in 16 bits
MAX_SPLITS = 64  # partial results a group; every program of the second launch merges them all


def vector(size: int) -> int:
    """Largest power of two up to 8 that divides the size of the contiguous dimension.

    Kernels take size // vector and multiply it back, because Triton proves only divisibility by 16
    by itself, and 8 elements of two bytes are the widest access there is: 16 bytes.
    """
    return math.gcd(size, 8)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run side by side; 1 in the interpreter, which runs one at a time."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    if cpu.KERNELS == "compiled":
        return triton.runtime.driver.active.utils.get_device_properties(0)["multiprocessor_count"]
    return 1


@functools.cache
def has_float8(device: torch.device) -> bool:
    """Whether kernels round to float8_e4m3fn there: on NVIDIA's GPUs since Ada and Hopper."""
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)
    return cpu.KERNELS != "compiled" or triton.runtime.driver.active.get_current_target().arch >= 89


@functools.cache
def lanes(device: torch.device) -> int:
    """Threads per warp: 32 on NVIDIA, 64 on CDNA."""
    return torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" else 32


def warps_of(num_warps: int, lanes: int) -> int:
    """The warps of a program whose warps were counted as of 32 threads; a program has 1024 at most."""
    return max(1, num_warps * 32 // lanes)

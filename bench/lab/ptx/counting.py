"""The counts of a launch: instructions by unit, sectors of global memory, wavefronts of shared memory."""

from functools import cache

import numpy as np

from .values import Array, is_float

MEMORY = ("ld.global", "st.global", "ld.shared", "st.shared", "cp", "ldmatrix", "stmatrix")
UNITS = {"shfl": "shfl", "bar": "bar", "bra": "branch", "cvt": "cvt", "div": "div"}
UNITS |= dict.fromkeys(MEMORY, "lsu")
UNITS |= dict.fromkeys(("rsqrt", "ex2", "rcp", "sqrt"), "mufu")
UNITS |= dict.fromkeys(("fma", "contracted", "mul", "mad"), "fma")
OF_DOUBLES = {"fma", "contracted", "mul", "mad", "add", "sub", "div", "neg", "abs", "min", "max"}
SECTOR = 32  # bytes that memory moves at once
BANKS, WORD = 32, 4  # banks of shared memory, and bytes that each moves at once


@cache
def unit_of(opcode: str) -> str:
    """The unit of a multiprocessor that an instruction occupies."""
    base, *parts = opcode.split(".")
    whole = ".".join([base, *parts[:1]])
    if whole in UNITS:
        return UNITS[whole]
    if base in OF_DOUBLES and parts[-1] == "f64":
        return "fp64"
    if base in ("add", "sub") and is_float(parts[-1].removesuffix("x2")):
        return "fma"
    return UNITS.get(base, "alu")


def sectors(address: Array, warp: Array) -> int:
    """The number of different sectors that each warp touches, added up; an aligned access lies in one."""
    return different((warp.astype(np.uint64) << np.uint64(44)) | (address // np.uint64(SECTOR)))


def different(x: Array) -> int:
    """The number of different values."""
    if (x[1:] < x[:-1]).any():
        x = np.sort(x)
    return 1 + int(np.count_nonzero(x[1:] != x[:-1]))


def wavefronts(address: Array, width: int, warp: Array) -> int:
    """The passes over shared memory: for each warp, the most different words of one bank, added up.

    Accesses of 8 and 16 bytes are made in 2 and 4 parts.
    """
    parts = max(1, width // WORD)
    word = address // WORD
    if parts > 1:
        word, warp = (word[:, None] + np.arange(parts)).ravel(), np.repeat(warp, parts)
    pair = (warp.astype(np.int64) << 32) | word
    if (pair[1:] < pair[:-1]).any():
        pair = np.sort(pair)
    pair = pair[np.concatenate([[True], pair[1:] != pair[:-1]])]
    bank = (pair >> 32) * BANKS + pair % BANKS
    return int(np.bincount(bank, minlength=BANKS * (int(warp[-1]) + 1)).reshape(-1, BANKS).max(1).sum())

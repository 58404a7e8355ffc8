"""What a launch counts: instructions by unit, sectors of global memory, wavefronts of shared memory."""

from functools import cache

import numpy as np

from .values import Array, is_float

CLASSES = {
    "ld.global": "lsu", "st.global": "lsu", "ld.shared": "lsu", "st.shared": "lsu", "cp": "lsu",
    "ldmatrix": "lsu", "stmatrix": "lsu", "shfl": "shfl", "bar": "bar", "bra": "branch", "cvt": "cvt",
    "rsqrt": "mufu", "ex2": "mufu", "rcp": "mufu", "sqrt": "mufu", "div": "div",
    "fma": "fma", "contracted": "fma", "mul": "fma", "mad": "fma",
}  # fmt: skip
OF_DOUBLES = {"fma", "contracted", "mul", "mad", "add", "sub", "div", "neg", "abs", "min", "max"}
SECTOR = 32  # bytes that memory moves at once
BANKS, WORD = 32, 4  # of shared memory, and bytes that each has at once


@cache
def unit_of(opcode: str) -> str:
    """The unit of a multiprocessor that an instruction occupies."""
    base, *parts = opcode.split(".")
    whole = ".".join([base, *parts[:1]])
    if whole in CLASSES:
        return CLASSES[whole]
    if base in OF_DOUBLES and parts[-1] == "f64":
        return "fp64"
    if base in ("add", "sub") and is_float(parts[-1].removesuffix("x2")):
        return "fma"
    return CLASSES.get(base, "alu")


def sectors(address: Array, warp: Array) -> int:
    """Different sectors that each warp touches, added up. Aligned accesses lie in one sector each."""
    return different((warp.astype(np.uint64) << np.uint64(44)) | (address // np.uint64(SECTOR)))


def different(x: Array) -> int:
    """How many different numbers there are."""
    if (x[1:] < x[:-1]).any():
        x = np.sort(x)
    return 1 + int(np.count_nonzero(x[1:] != x[:-1]))


def wavefronts(address: Array, width: int, warp: Array) -> int:
    """Passes that accesses to shared memory take: the most different words of one bank, warp by warp.

    Accesses of 8 and 16 bytes go in 2 and 4 parts.
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

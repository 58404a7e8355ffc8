"""What a launch counts: instructions by unit, sectors of global memory, wavefronts of shared memory."""

import numpy as np

from .parsing import Instruction
from .values import Array

CLASSES = {
    "ld.global": "lsu", "st.global": "lsu", "ld.shared": "lsu", "st.shared": "lsu", "cp": "lsu",
    "ldmatrix": "lsu", "stmatrix": "lsu", "shfl": "shfl", "bar": "bar", "bra": "branch", "cvt": "cvt",
    "rsqrt": "mufu", "ex2": "mufu", "rcp": "mufu", "sqrt": "mufu", "div": "div",
    "fma": "fma", "contracted": "fma", "mul": "fma",
}  # fmt: skip
OF_DOUBLES = {"fma", "contracted", "mul", "mad", "add", "sub", "div", "neg", "abs", "min", "max"}
SECTOR = 32  # bytes that memory moves at once
BANKS = 32  # of shared memory, each 4 bytes wide


def class_of(i: Instruction) -> str:
    """The unit of a multiprocessor that an instruction occupies."""
    whole = ".".join(i.parts[:2])
    if whole in CLASSES:
        return CLASSES[whole]
    if i.base in OF_DOUBLES and i.opcode.endswith("f64"):
        return "fp64"
    return CLASSES.get(i.base, "alu")


def sectors(address: Array, warp: Array) -> int:
    """Different sectors that each warp touches, added up. Aligned accesses lie in one sector each."""
    key = (warp.astype(np.int64) << 44) ^ (address // np.uint64(SECTOR)).astype(np.int64)
    return int(np.unique(key).size)


def wavefronts(address: Array, width: int, warp: Array) -> int:
    """Passes that accesses to shared memory take: the most different words of one bank, warp by warp.

    Accesses of 8 and 16 bytes go in 2 and 4 parts.
    """
    parts = max(1, width // 4)
    words = (address[:, None] // 4 + np.arange(parts)).ravel()
    pair = np.unique((np.repeat(warp, parts).astype(np.int64) << 32) | words)
    bank, different = np.unique((pair >> 32) * BANKS + (pair & 0xFFFFFFFF) % BANKS, return_counts=True)
    worst = np.zeros(int(warp.max()) + 1, np.int64)
    np.maximum.at(worst, bank // BANKS, different)
    return int(worst.sum())

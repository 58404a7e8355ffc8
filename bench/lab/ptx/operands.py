"""The meaning of operands: places in the list of registers, constants, parameters."""

import re

import numpy as np

from .errors import Unsupported
from .parsing import Instruction, Kernel
from .values import UINT, Array, size_of, undefined

SPECIAL = {f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"}
SPECIAL |= {"%laneid", "%warpid"}
INTEGER = re.compile(r"(-?)(0[xX][0-9a-fA-F]+|\d+)[uU]?")
ADDRESS = re.compile(r"([%\w$.]+)\s*(?:\+\s*(-?\w+))?")
DYNAMIC_SHARED = "global_smem"  # Triton's name of a program's shared memory


class Operands:
    """Assigns registers and constants to places; `initial` and `sizes` are lists in the order of places."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.parameters = {name: k for k, (name, _) in enumerate(kernel.params)}
        self.initial: list[Array] = []
        self.sizes: list[int] = []  # in bytes, 0 for a predicate
        self.specials: dict[str, int] = {}
        self.places: dict[object, int] = {}

    def place(self, key: object, size: int, value: Array) -> int:
        """The place for `key`, which is new at first."""
        if key not in self.places:
            self.places[key] = len(self.initial)
            self.initial.append(value)
            self.sizes.append(size)
        return self.places[key]

    def register(self, name: str) -> int:
        """The place of a register."""
        known = self.places.get(name)
        if known is not None:
            return known
        if name in SPECIAL:
            self.specials[name] = self.place(name, 4, undefined(4))
            return self.specials[name]
        declared = self.kernel.registers
        ty = declared.get(name) or declared.get(name.rstrip("0123456789"))
        if ty is None:
            raise Unsupported(
                f"register {name!r}; executed are those declared with .reg and {', '.join(sorted(SPECIAL))}"
            )
        size = size_of(ty)
        return self.place(name, size, undefined(size))

    def guard(self, i: Instruction) -> int | None:
        """The place of an instruction's predicate, or None."""
        return None if i.predicate is None else self.register(i.predicate)

    def constant(self, value: int, size: int) -> int:
        """The place of a constant, wrapped to `size` bytes; 0 is the size of a predicate."""
        if size == 0:
            return self.place((value != 0, 0), 0, np.array([value != 0]))
        value &= (1 << 8 * size) - 1
        return self.place((value, size), size, np.array([value], UINT[size]))

    def operand(self, text: str, size: int) -> int:
        """The place of a register, or of a literal of `size` bytes; 0 is the size of a predicate."""
        return self.register(text) if text[0] == "%" else self.constant(literal(text, size), size)

    def sources(self, texts: list[str], size: int) -> list[int]:
        """The places of several operands of one size."""
        return [self.operand(text, size) for text in texts]


def literal(text: str, size: int) -> int:
    """The bits of a literal in a register of `size` bytes."""
    if text[:2] in ("0f", "0F"):
        bits = int(text[2:], 16)
        return bits if size == 4 else int(np.float64(np.uint32(bits).view(np.float32)).view(np.uint64))
    if text[:2] in ("0d", "0D"):
        return int(text[2:], 16)
    if text == DYNAMIC_SHARED:
        return 0
    number = INTEGER.fullmatch(text)
    if number is None:
        raise Unsupported(f"operand {text!r}; executed are registers, numbers and {DYNAMIC_SHARED}")
    return int(number[2], 0) * (-1 if number[1] else 1)


def address(text: str) -> tuple[str, int]:
    """The base and the offset of `[base + offset]`."""
    found = ADDRESS.fullmatch(text[1:-1].strip()) if text[0] == "[" else None
    if found is None:
        raise Unsupported(f"address {text!r}; executed are [base] and [base + offset]")
    return found[1], int(found[2] or "0", 0)


def vector(text: str) -> list[str]:
    """The operands within braces, or the single one."""
    return [each.strip() for each in text[1:-1].split(",")] if text[0] == "{" else [text]

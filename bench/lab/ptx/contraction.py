"""Contracts a multiplication and the only addition that uses it into one operation, as ptxas does.

Triton's `enable_fp_fusion` allows that. PTX has fma for `a * b + c` only, so the new instructions are named
`contracted.add` (a * b + c), `contracted.sub` (a * b - c) and `contracted.rsub` (c - a * b).
"""

import re
from collections import Counter

from .parsing import Instruction, Kernel

MULTIPLY = ("mul.f32", "mul.f64")
ADD = ("add.f32", "add.f64")
SUBTRACT = ("sub.f32", "sub.f64")
READS_FIRST = ("st", "cp", "stmatrix")  # instructions that also read their first operand
DIGITS = "-0123456789"
REGISTER = re.compile(r"%[\w.]+")


def contract(kernel: Kernel) -> None:
    """Contracts a kernel's instructions, and moves its labels with them."""
    if not any(i.opcode in MULTIPLY for i in kernel.instructions):
        return
    reads, writes = uses(kernel.instructions)
    products: dict[str, int] = {}
    kept: list[Instruction | None] = list(kernel.instructions)
    for at, i in enumerate(kernel.instructions):
        if i.predicate is not None:
            continue
        if i.opcode in MULTIPLY:
            product, *factors = i.operands
            if reads[product] == writes[product] == 1 and all(writes[factor] <= 1 for factor in factors):
                products[product] = at
        elif i.opcode in ADD or i.opcode in SUBTRACT:
            result, left, right = i.operands
            first = left in products
            if first or right in products:
                product = products.pop(left if first else right)
                factors = kernel.instructions[product].operands[1:]
                how = "add" if i.opcode in ADD else "sub" if first else "rsub"
                operands = [result, *factors, right if first else left]
                kept[product] = None
                kept[at] = Instruction(f"contracted.{how}.{i.type}", operands, line=i.line)
    remove(kernel, kept)


def uses(instructions: list[Instruction]) -> tuple[Counter[str], Counter[str]]:
    """The numbers of operands that read and that write each register."""
    reads, writes = [], []
    for i in instructions:
        if i.predicate:
            reads.append(i.predicate)
        kinds = (reads, writes) if i.base in READS_FIRST else (writes,)
        for operand in i.operands:
            single = operand[0] == "%" and "|" not in operand
            names = (operand,) if single else () if operand[0] in DIGITS else REGISTER.findall(operand)
            for kind in kinds:
                kind += names
            kinds = (reads,)
    return Counter(reads), Counter(writes)


def remove(kernel: Kernel, kept: list[Instruction | None]) -> None:
    """Leaves out the instructions that are None."""
    position, positions = 0, []
    for i in kept:
        positions.append(position)
        position += i is not None
    positions.append(position)
    kernel.instructions = [i for i in kept if i is not None]
    kernel.labels = {label: positions[at] for label, at in kernel.labels.items()}

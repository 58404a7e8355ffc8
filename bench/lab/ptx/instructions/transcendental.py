"""Roots, exponentials, logarithms and other functions that a GPU looks up in tables, with their errors."""

from collections.abc import Callable

import numpy as np

from ..batch import Batch
from ..operands import Operands
from ..parsing import Instruction
from ..values import Array, reader, size_of, writer
from .table import Step, instruction

DIVISION_ERROR = 2**-22.5  # the error of div.full and div.approx
DOUBLE_ERROR = 2**-52
FUNCTIONS: dict[str, tuple[Callable[[Array], Array], float]] = {  # with the relative error of .approx
    "rsqrt": (lambda x: 1 / np.sqrt(x), 2**-22.9),
    "sqrt": (np.sqrt, 2**-22.9),
    "rcp": (lambda x: 1 / x, 2**-23),
    "ex2": (np.exp2, 2**-22.5),
    "lg2": (np.log2, 2**-22),
    "tanh": (np.tanh, 2**-11),
}


@instruction(*FUNCTIONS, modifiers="approx rn ftz")
def function(i: Instruction, operands: Operands) -> Step:
    """Makes the step of a function of one number; float32 numbers are computed in float64."""
    compute, error = FUNCTIONS[i.base]
    approximate = "approx" in i.parts

    def run(batch: Batch, x: Array) -> Array:
        if i.type != "f32":
            return batch.machine.nudge(compute(x), DOUBLE_ERROR) if approximate else compute(x)
        x = x.astype(np.float64)
        result = batch.machine.nudge(compute(x), error) if approximate else compute(x)
        return result.astype(np.float32)

    return approximated(i, operands, run)


def approximate_division(i: Instruction, operands: Operands) -> Step:
    """Makes the step of a float32 quotient that need not be the nearest."""

    def run(batch: Batch, a: Array, b: Array) -> Array:
        return batch.machine.nudge(a.astype(np.float64) / b, DIVISION_ERROR).astype(np.float32)

    return approximated(i, operands, run)


def approximated(i: Instruction, operands: Operands, run: Callable[..., Array]) -> Step:
    """Makes a step that sets the first operand to a function of the batch and of numbers."""
    target, guard, negated = operands.register(i.operands[0]), operands.guard(i), np.bool_(i.negated)
    sources = operands.sources(i.operands[1:], size_of(i.type))
    numbers, bits = reader(i.type, i.flushes), writer(i.type, operands.sizes[target], i.flushes)

    def step(batch: Batch) -> None:
        result = run(batch, *[numbers(batch.registers[s]) for s in sources])
        batch.write(target, bits(result), batch.mask(guard, negated))

    return step

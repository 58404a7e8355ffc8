"""Sizes and dtypes at which `smoke` calls the operations: those at which each kernel is reached."""

from dataclasses import dataclass

import torch

from bench.operations import DECLARED, Operation
from bench.operations.case import DTYPES, shape_of
from bench.operations.operation import Smoke
from bench.operations.problem import Maker
from bench.smoke import problems

INTERPRETED_ELEMENTS, INTERPRETED_COLS = 2**17, 2**14  # of tensors and of rows, at most, in the interpreter
ALL = tuple(DTYPES)
TABLE = {name: one.smoke for name, one in DECLARED.items() if one.smoke}


@dataclass(frozen=True)
class Case:
    operation: Operation
    dtype: str  # of DTYPES
    smoke: Smoke

    @property
    def family(self):
        return self.operation.name

    def __str__(self):
        name, smoke = self.family, self.smoke
        words = [name, self.dtype, smoke.example.removeprefix(f"{name} "), smoke.shape]
        words += [f"{key}={value}" for key, value in smoke.options.items()]
        words += ["channels_last"] * smoke.channels_last
        return " ".join(filter(None, words))

    @property
    def interpreted(self):
        """Whether it is also called where there is no GPU."""
        sizes = shape_of(self.smoke.shape)
        if len(sizes) == 1:
            return sizes[0] <= INTERPRETED_COLS
        return self.operation.problem is not None or torch.Size(sizes).numel() <= INTERPRETED_ELEMENTS

    def problem(self, device):
        torch.manual_seed(0)
        return problems.problem(self.operation, self.smoke, Maker(device, DTYPES[self.dtype]))


def cases(families=None):
    """bfloat16 of every family first, the families in turn."""
    found = []
    for operation in DECLARED.values():
        for number, smoke in enumerate(operation.smoke):
            for dtype in smoke.dtypes.split():
                order = ALL.index(dtype) > 0, number, ALL.index(dtype)
                found.append((order, Case(operation, dtype, smoke)))
    found = [case for _, case in sorted(found, key=lambda entry: entry[0])]
    if not problems.ON_A_GPU:
        found = [case for case in found if case.interpreted]
    return [case for case in found if case.family in (families or TABLE)]

"""The data on which errors are compared: plain, with an outlier in each row, with a mean, and constant."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

PLACES = {  # of an outlier in each of `number` rows of `elements`
    "first": lambda number, elements: torch.zeros(number, dtype=torch.int64),
    "middle": lambda number, elements: torch.full((number,), elements // 2),
    "anywhere": lambda number, elements: torch.randint(elements, (number,)),
}


@dataclass(frozen=True)
class Data:
    """Normal numbers, moved by a mean, or with an outlier in each row of what is normalised together."""

    mean: float = 0.0
    outlier: float = 0.0
    place: Callable | None = None

    def fits(self, dtype):
        """Whether numbers of the dtype that are this large still differ from each other."""
        return self.mean * torch.finfo(dtype).eps < 0.25

    def draw(self, case, together):
        """A tensor of the case's shape and dtype."""
        x = case.like_input(torch.randn, "cpu", torch.float64) + self.mean
        if self.place is not None:
            rows = together(torch.arange(x.numel()).view(case.shape), case)
            where = rows[torch.arange(len(rows)), self.place(*rows.shape)]
            x.put_(where, torch.full(where.shape, self.outlier, dtype=x.dtype))
        return x.to(case.dtype)


OUTLIERS, MEANS = ("50", "1e4"), ("10", "1e6")
DATA = {
    "randn": Data(),
    **{f"{of} {place}": Data(outlier=float(of), place=f) for of in OUTLIERS for place, f in PLACES.items()},
    **{f"mean {mean}": Data(mean=float(mean)) for mean in MEANS},
}
CONSTANT = "constant"


def constant(case, together):
    """A tensor whose rows are constant, each another number of any size."""
    rows = together(torch.arange(torch.Size(case.shape).numel()).view(case.shape), case)
    numbers = torch.randn(len(rows), 1, dtype=torch.float64) * 10 ** torch.empty(len(rows), 1).uniform_(-3, 4)
    x = case.like_input(torch.zeros, "cpu", torch.float64)
    return x.put_(rows, numbers.expand(rows.shape).contiguous()).to(case.dtype)

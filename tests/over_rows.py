"""Operations over rows as their tests take them, ours and torch's."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from normreg import functional


class RowNorm(NamedTuple):
    """An operation over rows, ours and torch's, of (x, normalized_shape, *parameters, eps)."""

    ours: Callable
    theirs: Callable
    parameters: int
    statistics: int  # saved for each row

    def functions(self, normalized_shape, eps=1e-5):
        def of(operation):
            return lambda x, *parameters: operation(x, normalized_shape, *parameters, eps)

        return of(self.ours), of(self.theirs)

    def inputs(self, shape, normalized_shape, dtype, device, present=(True, True), mean=0.0, std=1.0):
        x = (torch.randn(shape, device=device, dtype=torch.float64) * std + mean).to(dtype).requires_grad_()
        parameters = (
            torch.randn(normalized_shape, device=device, dtype=dtype, requires_grad=True) if there else None
            for there in present[: self.parameters]
        )
        return [x, *parameters]


LAYER_NORM = RowNorm(functional.layer_norm, F.layer_norm, parameters=2, statistics=2)
RMS_NORM = RowNorm(functional.rms_norm, F.rms_norm, parameters=1, statistics=1)
NORMS = {"layer_norm": LAYER_NORM, "rms_norm": RMS_NORM}

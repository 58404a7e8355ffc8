"""The norms over rows as their tests take them, ours and torch's, from their declarations."""

from typing import NamedTuple

import torch

from bench.operations import DECLARED, OURS, TORCH, Operation
from bench.operations.operation import Function


class RowNorm(NamedTuple):
    operation: Operation
    example: Function  # the plain one

    @property
    def parameters(self):
        return len(self.example.shapes) - 1

    @property
    def statistics(self):
        """How many numbers of float32 are saved for each row."""
        return self.operation.kept(torch.empty(1, 1), True) // 4

    def functions(self, normalized_shape, eps=1e-5):
        """Ours and torch's, of (x, *parameters)."""
        options = dict(eps=eps) | (dict(dims=len(normalized_shape)) if len(normalized_shape) > 1 else {})

        def of(library):
            return lambda *inputs: self.example(library, *inputs, **options)

        return of(OURS), of(TORCH)

    def parameter_shapes(self, normalized_shape):
        """Those of rows, and of numbers."""
        return [normalized_shape if shape else () for shape in self.example.shapes[1:]]

    def inputs(self, shape, normalized_shape, dtype, device, present=(True, True), mean=0.0, std=1.0):
        x = (torch.randn(shape, device=device, dtype=torch.float64) * std + mean).to(dtype).requires_grad_()
        parameters = (
            torch.randn(parameter, device=device, dtype=dtype, requires_grad=True) if there else None
            for parameter, there in zip(self.parameter_shapes(normalized_shape), present)
        )
        return [x, *parameters]


def has_parameters_alone(example):
    """Whether no input beside x has its shape, such as a gate."""
    return example.shapes[0] not in example.shapes[1:]


NORMS = {
    name: RowNorm(one, one.examples()[name])
    for name, one in DECLARED.items()
    if one.over == "rows" and not one.random and has_parameters_alone(one.examples()[name])
}
# those whose rows may have several dimensions, and are computed by LayerNorm's kernels
LIKE_LAYER_NORM = {name: norm for name, norm in NORMS.items() if norm.operation.kernels == "layer_norm"}
LAYER_NORM, RMS_NORM = NORMS["layer_norm"], NORMS["rms_norm"]

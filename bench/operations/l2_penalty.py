"""The L2 penalty of a model's parameters, which is a number and has no layer to be measured."""

import torch

from .operation import Function, Operation


def l2_penalty(parameters, weight_decay):
    wide = [w.to(torch.promote_types(w.dtype, torch.float32)) for w in parameters]
    return weight_decay / 2 * sum(w.square().sum() for w in wide)


OPERATION = Operation(
    name="l2_penalty",
    kernels="",
    functions={"l2_penalty": Function(lambda f, *tensors: f(tensors, 0.3), ((5,), (2, 3)))},
    formulas={"l2_penalty": l2_penalty},
)

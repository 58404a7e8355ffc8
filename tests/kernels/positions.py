"""Inputs of norms over the channels of each position."""

import torch

# N, C, *spatial: one position, few, more than a tile; channels held, held by the forward alone, in chunks
SHAPES = (
    (3, 5, 1),
    (2, 1, 7, 9),
    (2, 17, 5, 13),
    (1, 96, 8, 16),
    (2, 130, 67),
    (2, 33, 3, 4, 5),
    (1, 1030, 9),
    (1, 2100, 3, 11),
)


def inputs_of(shape, dtype, device, present=(True, True)):
    x = torch.randn(shape, dtype=torch.float64, device=device).to(dtype).requires_grad_()
    parameters = (
        torch.randn(shape[1], dtype=torch.float64, device=device).to(dtype).requires_grad_()
        if there
        else None
        for there in present
    )
    return [x, *parameters]

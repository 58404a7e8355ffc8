"""Inputs, buffers and functions of BatchNorm, ours and torch's."""

import torch
from over_channels import LAST


def inputs_for(shape, channels_last, dtype, device, affine="weight bias", mean=0.0, std=1.0):
    x = (torch.randn(shape, device=device, dtype=torch.float64) * std + mean).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=LAST[x.dim()])
    weight, bias = (
        torch.randn(shape[1], device=device, dtype=dtype, requires_grad=True) if name in affine else None
        for name in ("weight", "bias")
    )
    return [x.requires_grad_(), weight, bias]


def running_for(shape, device):
    return [torch.randn(shape[1], device=device), torch.rand(shape[1], device=device) + 0.1]

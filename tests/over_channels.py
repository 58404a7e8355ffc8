"""Inputs of operations over channels, views of them, and numbers of `tiling` that make kernels split."""

import pytest
import torch

from normreg.kernels import tiling

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

VIEWS = {
    "batch and channels swapped": lambda x: x.transpose(0, 1),
    "cols sliced": lambda x: x[..., ::2],
    "channels sliced": lambda x: x[:, ::2],
    "flipped": lambda x: x.flip(1),
    "plane transposed": lambda x: x.transpose(2, 3),
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "channels_last sliced": lambda x: x.contiguous(memory_format=torch.channels_last)[:, 2:],
}


def inputs_for(shape, dtype, device, affine="weight bias", mean=0.0, std=1.0):
    x = (torch.randn(shape, device=device, dtype=torch.float64) * std + mean).to(dtype).requires_grad_()
    weight, bias = (
        torch.randn(shape[1], device=device, dtype=dtype, requires_grad=True) if name in affine else None
        for name in ("weight", "bias")
    )
    return [x, weight, bias]


def nothing_fits_a_tile(monkeypatch):
    """Groups are split, whatever their size."""
    monkeypatch.setattr(tiling.hardware, "TILE_WORDS_FORWARD", 0)
    monkeypatch.setattr(tiling.hardware, "TILE_WORDS_BACKWARD", 0)


def split_all(monkeypatch):
    """Channels of BatchNorm are split, where those of a few thousand elements fit into a tile."""
    for direction in ("forward", "backward"):
        monkeypatch.setattr(tiling.channels, f"batch_norm_{direction}_tile", lambda *_: None)


@pytest.fixture(params=["tile", "split"])
def regime(request, monkeypatch):
    """Channels of a few thousand elements fit into a tile; here they are split as well."""
    if request.param == "split":
        split_all(monkeypatch)
    return request.param

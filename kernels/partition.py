"""How the channels of a tensor are shared out among the programs of a launch: in tiles, or in splits."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import triton

from normreg.kernels import dtypes, launch, tiling
from normreg.kernels.memory_format import Layout, layout
from normreg.kernels.tiling.channels import ChannelTile

_kept_launch = launch.kept(launch.Launch)


class Partition(NamedTuple):
    """What the launches of one call have in common."""

    device: torch.device
    grid: tuple[int, ...]  # blocks of channels, of each sample where it has its own; splits
    sizes: tuple[int, ...]  # samples, channels and spatial, the contiguous one in vectors; tiles of splits
    constants: dict[str, Any]

    @property
    def splits(self) -> int:
        return self.grid[1]

    def in_warps(self, num_warps: int) -> "Partition":
        """The same programs with so many warps each."""
        return self._replace(constants=self.constants | dict(num_warps=num_warps))

    def launch(
        self, kernel: Any, tensors: Iterable[torch.Tensor | None], *numbers: float, **constants: Any
    ) -> None:
        """Runs a kernel that takes the tensors, the sizes, the numbers and the constants."""
        call = _kept_launch(
            kernel, self.grid, self.device, *self.sizes, *numbers, **constants, **self.constants
        )
        launch.launch(call, *tensors)


def in_format(
    tile: ChannelTile, channels: int, spatial: int, channels_last: bool
) -> tuple[ChannelTile, tuple[int, int]]:
    """The tile of x in its memory format, and channels and spatial, the contiguous one in vectors."""
    vector = tiling.hardware.vector(channels if channels_last else spatial)
    tile = tile._replace(channels_last=channels_last, vector=vector)
    return tile, (channels // vector, spatial) if channels_last else (channels, spatial // vector)


def _partition(
    x: Layout,
    device: torch.device,
    tile: ChannelTile,
    splits: tuple[int, ...] = (),
    tiles: tuple[int, ...] = (),
) -> Partition:
    samples, channels, spatial, channels_last = x
    tile, in_vectors = in_format(tile, channels, spatial, channels_last)
    return Partition(
        device,
        grid=(triton.cdiv(channels, tile.channels), *splits),
        sizes=(samples, *in_vectors, *tiles),
        constants=dict(TILE=tile, num_warps=tile.num_warps),
    )


@launch.kept
def _in_tiles(shape, contiguous, dtype, device, choose, details):
    x = layout(shape, contiguous)
    tile = choose(*x, dtypes.compute_dtype(dtype), *details)
    return None if tile is None else _partition(x, device, tile)


def in_tiles(x: torch.Tensor, choose: Callable[..., ChannelTile | None], *details: Any) -> Partition | None:
    """One tile a program, or None where a channel is too large for it; x is as `dense` returns it.

    choose: the function of `tiling.channels` that chooses the tile, also by the details.
    """
    return _in_tiles(x.shape, x.is_contiguous(), x.dtype, x.device, choose, details)


@launch.kept
def _in_splits(shape, contiguous, device, split, at_once=None):
    x = layout(shape, contiguous)
    samples, channels, spatial, _ = x
    tile = tiling.channels.batch_norm_split_tile(*x)
    tiles = triton.cdiv(samples, tile.samples) * triton.cdiv(spatial, tile.spatial)
    channel_blocks = triton.cdiv(at_once or channels, tile.channels)
    splits, tiles_per_split = split(tiles, tile.samples * tile.spatial, channel_blocks, device)
    return _partition(x, device, tile, (splits,), (tiles, tiles_per_split))


def in_splits(
    x: torch.Tensor, split: Callable[..., tuple[int, int]] | None = None, at_once: int | None = None
) -> Partition:
    """Splits of several tiles each; x is as `dense` returns it.

    split: the function of `tiling` that says how many, BatchNorm's where it is None.
    at_once: the number of channels whose splits fill a GPU, where it is not all of them.
    """
    split = split or tiling.channels.batch_norm_splits
    return _in_splits(x.shape, x.is_contiguous(), x.device, split, at_once)


@launch.kept
def _in_splits_of_samples(shape, device):
    of_one = _in_splits(torch.Size((1, *shape[1:])), False, device, tiling.channels.batch_norm_splits)
    blocks, splits = of_one.grid
    return of_one._replace(grid=(shape[0] * blocks, splits), sizes=(shape[0], *of_one.sizes[1:]))


def in_splits_of_samples(x: torch.Tensor) -> Partition:
    """Splits of each sample of x, channels-last, as of one alone: no result depends on the other samples."""
    return _in_splits_of_samples(x.shape, x.device)

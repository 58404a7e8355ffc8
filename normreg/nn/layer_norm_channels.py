import torch
from torch import Tensor
from torch.types import Device

from normreg import functional
from normreg.functional.tracing import leaf
from normreg.nn.arguments import OutDtype, check_dimensions, instead

OF_TIMMS = dict(
    elementwise_affine="pass affine={}, as to timm's layer",
    normalized_shape="pass num_channels, the number of channels",
    num_features="pass num_channels={}",
)


class _LayerNormChannels(OutDtype, torch.nn.LayerNorm):
    """timm's LayerNorm2d: LayerNorm over the channels of (N, C, *), with timm's constructor and parameters.

    Args:
        num_channels: C, the number of channels.
        eps: added to the variance.
        affine: whether the layer has weight and bias.
        bias: whether it has a bias.
        out_dtype: that of `normreg.functional.layer_norm_channels`.
    """

    dimensions: int

    @instead(**OF_TIMMS)
    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        affine: bool = True,
        *,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_channels, eps, affine, bias, device, dtype)
        self._set_out_dtype(out_dtype)

    def forward(self, x: Tensor) -> Tensor:
        check_dimensions(self, x, self.dimensions, "LayerNorm")
        return functional.layer_norm_channels(x, self.weight, self.bias, self.eps, out_dtype=self.out_dtype)


@leaf
class LayerNorm1d(_LayerNormChannels):
    """LayerNorm over the channels of an (N, C, L) input: `normreg.functional.layer_norm_channels`."""

    dimensions = 3


@leaf
class LayerNorm2d(_LayerNormChannels):
    """LayerNorm over the channels of an (N, C, H, W) input: `normreg.functional.layer_norm_channels`."""

    dimensions = 4


@leaf
class LayerNorm3d(_LayerNormChannels):
    """LayerNorm over the channels of an (N, C, D, H, W) input: `normreg.functional.layer_norm_channels`."""

    dimensions = 5

import torch

from normreg import functional


class _LayerNormChannels(torch.nn.LayerNorm):
    """timm's LayerNorm2d: LayerNorm over the channels of (N, C, *), with its constructor and parameters.

    Args:
        num_channels: C.
        eps: added to the variance.
        affine: whether there are weight and bias.
    """

    dimensions: int

    def __init__(self, num_channels, eps=1e-6, affine=True, **options):
        super().__init__(num_channels, eps=eps, elementwise_affine=affine, **options)

    def forward(self, x):
        if x.dim() != self.dimensions:
            raise ValueError(
                f"{type(self).__name__} expected an (N, C, *) input of {self.dimensions} dimensions, got "
                f"{x.dim()}: use the layer for that many, or add the batch with x.unsqueeze(0)"
            )
        return functional.layer_norm_channels(x, self.weight, self.bias, self.eps)


class LayerNorm1d(_LayerNormChannels):
    """LayerNorm over the channels of an (N, C, L) input: `normreg.functional.layer_norm_channels`."""

    dimensions = 3


class LayerNorm2d(_LayerNormChannels):
    """LayerNorm over the channels of an (N, C, H, W) input: `normreg.functional.layer_norm_channels`."""

    dimensions = 4


class LayerNorm3d(_LayerNormChannels):
    """LayerNorm over the channels of an (N, C, D, H, W) input: `normreg.functional.layer_norm_channels`."""

    dimensions = 5

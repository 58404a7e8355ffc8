"""Stand-ins for layers of other libraries: classes of the same import path, attributes and formula."""

import pytest
import torch
from support.elsewhere import TimmBatchNormAct2d, TimmGroupNormAct, at
from torch import nn


def wide(x):
    """`x.float()`, as the libraries write it, except that float64, the reference, is not rounded."""
    return x if x.dtype == torch.float64 else x.float()


def root_mean_square(x, eps):
    return x.square().mean(-1, keepdim=True).add(eps).rsqrt()


@at("transformers.models.llama.modeling_llama.LlamaRMSNorm")
class LlamaRMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(size)), 1e-6

    def forward(self, hidden_states):
        x = wide(hidden_states)
        return self.weight * (x * root_mean_square(x, self.variance_epsilon)).to(hidden_states.dtype)


@at("transformers.models.olmo2.modeling_olmo2.Olmo2RMSNorm")
class Olmo2RMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states):
        x = wide(hidden_states)
        return (self.weight * (x * root_mean_square(x, self.variance_epsilon))).to(hidden_states.dtype)


@at("transformers.models.t5.modeling_t5.T5LayerNorm")
class T5LayerNorm(LlamaRMSNorm):
    def forward(self, hidden_states):
        x = hidden_states * root_mean_square(wide(hidden_states), self.variance_epsilon)
        half = self.weight.dtype in (torch.float16, torch.bfloat16)
        return self.weight * (x.to(self.weight.dtype) if half else x)


@at("transformers.models.gemma.modeling_gemma.GemmaRMSNorm")
class GemmaRMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(size)), 1e-6

    def forward(self, x):
        scale = root_mean_square(wide(x), self.eps)
        return (wide(x) * scale * (1.0 + wide(self.weight))).type_as(x)


class ChannelsFirst(nn.LayerNorm):
    def __init__(self, size, **options):
        super().__init__(size, eps=1e-6, **options)

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@at("torchvision.models.convnext.LayerNorm2d")
class TorchvisionLayerNorm2d(ChannelsFirst):
    pass


@at("timm.layers.norm.LayerNorm2d")
class TimmLayerNorm2d(ChannelsFirst):
    _fast_norm = False


@at("transformers.models.convnext.modeling_convnext.ConvNextLayerNorm")
class ConvNextLayerNorm(nn.LayerNorm):
    def __init__(self, size, data_format="channels_first"):
        super().__init__(size, eps=1e-6)
        self.data_format = data_format

    def forward(self, features):
        if self.data_format == "channels_first":
            return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return super().forward(features)


@at("timm.layers.norm.LayerNorm")
class TimmLayerNorm(nn.LayerNorm):
    _fast_norm = False


@at("timm.layers.norm.GroupNorm1")
class TimmGroupNorm1(nn.GroupNorm):
    _fast_norm = False

    def __init__(self, channels):
        super().__init__(1, channels)


@at("timm.layers.norm.RmsNorm")
class TimmRmsNorm(nn.Module):
    _fast_norm = False

    def __init__(self, channels):
        super().__init__()
        self.normalized_shape, self.eps = (channels,), 1e-6
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * root_mean_square(x, self.eps) * self.weight


@at("timm.layers.norm.RmsNorm2d")
class TimmRmsNorm2d(TimmRmsNorm):
    def forward(self, x):
        rstd = x.square().mean(1, keepdim=True).add(self.eps).rsqrt()
        return x * rstd * self.weight.reshape(1, -1, 1, 1)


@at("timm.layers.norm.RmsNorm2dFp32")
class TimmRmsNorm2dFp32(TimmRmsNorm2d):
    def forward(self, x):
        return super().forward(wide(x)).to(x.dtype)


@at("torchvision.ops.misc.FrozenBatchNorm2d")
class FrozenBatchNorm2d(nn.Module):
    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


@at("timm.layers.drop.DropPath")
class TimmDropPath(nn.Module):
    def __init__(self, drop_prob=0.5, scale_by_keep=True):
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x):
        if not self.training:
            return x
        noise = x.new_empty(len(x), *(1,) * (x.dim() - 1)).bernoulli_(1 - self.drop_prob)
        return x * noise / (1 - self.drop_prob if self.scale_by_keep else 1)


@at("torchvision.ops.stochastic_depth.StochasticDepth")
class StochasticDepth(nn.Module):
    def __init__(self, p=0.5, mode="row"):
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, input):
        rows = len(input) if self.mode == "row" else 1
        noise = input.new_empty(rows, *(1,) * (input.dim() - 1)).bernoulli_(1 - self.p)
        return input * noise / (1 - self.p) if self.training else input


ROWS, IMAGES = (2, 3, 8), (2, 8, 3, 3)
NORMS = {
    LlamaRMSNorm: (ROWS, "layer_norm"),
    Olmo2RMSNorm: (ROWS, "layer_norm"),
    T5LayerNorm: (ROWS, "layer_norm"),
    GemmaRMSNorm: (ROWS, "layer_norm"),
    ConvNextLayerNorm: (IMAGES, "layer_norm"),
    TorchvisionLayerNorm2d: (IMAGES, "layer_norm"),
    TimmLayerNorm2d: (IMAGES, "layer_norm"),
    TimmLayerNorm: (ROWS, "layer_norm"),
    TimmGroupNorm1: (IMAGES, "group_norm"),
    TimmRmsNorm: (ROWS, "layer_norm"),
    TimmRmsNorm2d: (IMAGES, "layer_norm"),
    TimmRmsNorm2dFp32: (IMAGES, "layer_norm"),
    TimmBatchNormAct2d: (IMAGES, "batch_norm"),
    TimmGroupNormAct: (IMAGES, "group_norm"),
    FrozenBatchNorm2d: (IMAGES, "batch_norm"),
}
every_norm = pytest.mark.parametrize("cls", NORMS, ids=lambda cls: cls.__name__)

"""Five networks in plain torch.nn; their default sizes are the published ones.

GPT-2 and BERT follow the published code, ViT, ResNet and ConvNeXt torchvision's. Weights are random, with the
published initialisation's scale. `random_batch` makes inputs and labels of the network's own task.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

INITIAL_STD = 0.02
IGNORED = -100  # label that cross_entropy skips


def initialise(network):
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            nn.init.normal_(module.weight, std=INITIAL_STD)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)


def dropout_layer(p):
    return nn.Dropout(p) if p else nn.Identity()


class Attention(nn.Module):
    """Attention whose dropout acts inside torch's fused operator, so that it is not a layer."""

    def __init__(self, width, heads, dropout, causal):
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x):  # (samples, tokens, width)
        parts = self.qkv(x).chunk(3, dim=-1)
        query, key, value = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=self.causal)
        return self.projection(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A transformer's layer, with the norm before each half (GPT-2, ViT) or after its residual sum (BERT)."""

    def __init__(self, width, heads, *, eps, dropout=0.0, causal=False, norm_first=True, gelu="none"):
        super().__init__()
        self.norm_first = norm_first
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads, dropout, causal)
        self.dropout1 = dropout_layer(dropout)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate=gelu), nn.Linear(4 * width, width)
        )
        self.dropout2 = dropout_layer(dropout)

    def forward(self, x):
        if self.norm_first:
            x = x + self.dropout1(self.attention(self.norm1(x)))
            return x + self.dropout2(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.dropout1(self.attention(x)))
        return self.norm2(x + self.dropout2(self.mlp(x)))


class GPT2(nn.Module):
    """GPT-2 124M: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019)."""

    def __init__(self, layers=12, width=768, heads=12, vocabulary=50257, context=1024, dropout=0.1):
        super().__init__()
        options = dict(eps=1e-5, dropout=dropout, causal=True, gelu="tanh")
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = dropout_layer(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, **options) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, eps=1e-5)
        initialise(self)
        for block in self.blocks:  # each adds two terms to the residual stream
            for last in (block.attention.projection, block.mlp[-1]):
                nn.init.normal_(last.weight, std=INITIAL_STD / math.sqrt(2 * layers))

    def forward(self, ids):  # (samples, tokens)
        x = self.dropout(self.tokens(ids) + self.positions.weight[: ids.shape[1]])
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)

    def random_batch(self, samples):
        """Random tokens; the labels are the next ones."""
        shape = samples, self.positions.num_embeddings + 1
        ids = torch.randint(self.tokens.num_embeddings, shape)
        return ids[:, :-1], ids[:, 1:]


class BERT(nn.Module):
    """BERT-base, uncased, with its masked-language-model head: Devlin et al. (2018), arXiv 1810.04805."""

    def __init__(self, layers=12, width=768, heads=12, vocabulary=30522, context=512, dropout=0.1):
        super().__init__()
        options = dict(eps=1e-12, dropout=dropout, norm_first=False)
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.segments = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = dropout_layer(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, **options) for _ in range(layers)))
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-12))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        initialise(self)

    def forward(self, ids):  # (samples, tokens), of one segment and without padding
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]] + self.segments.weight[0]
        x = self.blocks(self.dropout(self.norm(x)))
        return F.linear(self.head(x), self.tokens.weight, self.bias)

    def random_batch(self, samples):
        """Random tokens of which 15 % are masked; the labels are the masked ones."""
        vocabulary, mask_token = self.tokens.num_embeddings, 103
        labels = torch.randint(vocabulary, (samples, self.positions.num_embeddings))
        masked = torch.rand(labels.shape) < 0.15
        return labels.masked_fill(masked, mask_token), labels.masked_fill(~masked, IGNORED)


class ImageClassifier(nn.Module):
    def random_batch(self, samples):
        images = torch.randn(samples, 3, self.image, self.image)
        return images, torch.randint(self.head.out_features, (samples,))


class ViT(ImageClassifier):
    """ViT-B/16, trained without dropout: Dosovitskiy et al. (2020), arXiv 2010.11929."""

    def __init__(self, layers=12, width=768, heads=12, patch=16, image=224, classes=1000):
        super().__init__()
        self.image = image
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(INITIAL_STD * torch.randn(1 + (image // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, eps=1e-6) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        initialise(self)

    def forward(self, images):
        patches = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def normalized_convolution(channels, out_channels, size, stride=1):
    convolution = nn.Conv2d(channels, out_channels, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution, nn.BatchNorm2d(out_channels)


class Bottleneck(nn.Module):
    """The bottleneck of version 1.5, with the stride in the 3x3 convolution."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.branch = nn.Sequential(
            *normalized_convolution(channels, width, 1),
            nn.ReLU(inplace=True),
            *normalized_convolution(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *normalized_convolution(width, 4 * width, 1),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != 4 * width:
            self.shortcut.extend(normalized_convolution(channels, 4 * width, 1, stride))

    def forward(self, x):
        return self.branch(x).add_(self.shortcut(x)).relu_()


class ResNet50(ImageClassifier):
    """ResNet-50: He et al. (2015), arXiv 1512.03385, with torchvision's bottleneck."""

    def __init__(self, depths=(3, 4, 6, 3), width=64, image=224, classes=1000):
        super().__init__()
        self.image = image
        self.stem = nn.Sequential(
            *normalized_convolution(3, width, 7, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stages, channels = nn.Sequential(), width
        for stage, depth in enumerate(depths):
            for block in range(depth):
                stride = 2 if stage and not block else 1
                self.stages.append(Bottleneck(channels, width << stage, stride))
                channels = 4 * width << stage
        self.head = nn.Linear(channels, classes)

    def forward(self, images):
        return self.head(self.stages(self.stem(images)).mean((2, 3)))


class Permute(nn.Module):
    def __init__(self, *order):
        super().__init__()
        self.order = order

    def forward(self, x):
        return x.permute(self.order)


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels, layer_scale):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
            Permute(0, 3, 1, 2),
        )
        self.scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale))

    def forward(self, x):
        return x + self.scale * self.branch(x)


class ConvNeXt(ImageClassifier):
    """ConvNeXt-T without stochastic depth: Liu et al. (2022), arXiv 2201.03545."""

    def __init__(
        self, depths=(3, 3, 9, 3), widths=(96, 192, 384, 768), image=224, classes=1000, layer_scale=1e-6
    ):
        super().__init__()
        self.image = image
        self.stages = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), *self.channel_norm(widths[0]))
        for stage, (depth, width) in enumerate(zip(depths, widths)):
            if stage:
                self.stages.extend(self.channel_norm(widths[stage - 1]))
                self.stages.append(nn.Conv2d(widths[stage - 1], width, 2, stride=2))
            self.stages.extend(ConvNeXtBlock(width, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], classes)
        initialise(self)

    @staticmethod
    def channel_norm(channels):
        return Permute(0, 2, 3, 1), nn.LayerNorm(channels, eps=1e-6), Permute(0, 3, 1, 2)

    def forward(self, images):
        return self.head(self.norm(self.stages(images).mean((2, 3))))

"""The two networks of the demo, and the digits that they learn."""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import nn

from bench.demo import DEVICE

TEST_IMAGES = 500


@dataclass(frozen=True)
class Size:
    channels: int
    width: int
    layers: int
    learning_rate: float
    steps: int


SIZES = {
    # by (device, quick); few layers and steps on the CPU, where a kernel's program takes milliseconds
    ("cpu", False): Size(channels=16, width=64, layers=2, learning_rate=3e-3, steps=50),
    ("cpu", True): Size(channels=16, width=64, layers=1, learning_rate=3e-3, steps=20),
    ("cuda", False): Size(channels=64, width=256, layers=4, learning_rate=3e-4, steps=200),
    ("cuda", True): Size(channels=64, width=256, layers=4, learning_rate=3e-4, steps=60),
}


def convolutional_network(size, dropout):
    channels = size.channels
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * channels),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(2 * channels * 4 * 4, 10),
    )


class TransformerClassifier(nn.Module):
    """A classifier that reads a digit as the sequence of its 8 rows.

    The dropout inside attention is not a layer, so it stays torch's.
    """

    def __init__(self, size, dropout):
        super().__init__()
        width = size.width
        options = dict(activation="gelu", batch_first=True, norm_first=True)
        layer = nn.TransformerEncoderLayer(width, 4, width, dropout, **options)
        self.embedding = nn.Linear(8, width)
        self.position = nn.Parameter(0.1 * torch.randn(8, width))
        norm = nn.LayerNorm(width)
        self.encoder = nn.TransformerEncoder(layer, size.layers, norm, enable_nested_tensor=False)
        self.head = nn.Linear(8 * width, 10)

    def forward(self, images):
        rows = self.embedding(images.squeeze(1)) + self.position
        return self.head(self.encoder(rows).flatten(1))


NETWORKS = {"Convolutional network": convolutional_network, "Transformer encoder": TransformerClassifier}


def digits(seed):
    """Returns (images, labels) to train on and (images, labels) to test on."""
    loaded = load_digits()
    order = torch.randperm(len(loaded.target), generator=torch.Generator().manual_seed(seed))
    images = (torch.tensor(loaded.images, dtype=torch.float32)[order, None] / 16).to(DEVICE)
    labels = torch.tensor(loaded.target)[order].to(DEVICE)
    return (images[TEST_IMAGES:], labels[TEST_IMAGES:]), (images[:TEST_IMAGES], labels[:TEST_IMAGES])

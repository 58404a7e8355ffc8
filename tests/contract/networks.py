"""Networks that users' tools and libraries are tried on."""

from torch import nn


def of_images(*layers):
    """A network of (N, 3, 4, 4) images, with these layers of 8 channels behind its convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        *layers,
        nn.Flatten(),
        nn.Linear(128, 10),
        nn.LayerNorm(10),
        nn.RMSNorm(10),
        nn.Dropout(0.0),
        nn.Linear(10, 4),
    )

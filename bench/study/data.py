"""Data that ships with scikit-learn, and corruptions of its images."""

import functools

import torch
import torch.nn.functional as F
from sklearn import datasets

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOADERS = {"digits": datasets.load_digits, "breast cancer": datasets.load_breast_cancer}
SEVERITIES = (1, 2, 3, 4, 5)


@functools.cache
def _loaded(name):
    loaded = LOADERS[name]()
    return torch.tensor(loaded.data, dtype=torch.float32), torch.tensor(loaded.target)


def split(name, seed, train):
    """Returns (x, labels) to train on and to test on, split by the seed; features have mean 0 and variance 1.

    Pixels are divided by one number, because their scales carry information.
    """
    x, labels = _loaded(name)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, labels = x[order], labels[order]
    over = (0, 1) if name == "digits" else 0
    std, mean = torch.std_mean(x[:train], over)
    x = ((x - mean) / std).to(DEVICE)
    labels = labels.to(DEVICE)
    return (x[:train], labels[:train]), (x[train:], labels[train:])


def images(seed, train):
    """Returns digits of 8 x 8 in [0, 1]: (x, labels) to train on and to test on."""
    x, labels = _loaded("digits")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, labels = (x[order].view(-1, 1, 8, 8) / 16).to(DEVICE), labels[order].to(DEVICE)
    return (x[:train], labels[:train]), (x[train:], labels[train:])


def _noise(x, severity, generator):
    return x + 0.12 * severity * torch.randn(x.shape, generator=generator).to(x)


def _blur(x, severity, generator):
    at = torch.arange(-2.0, 3.0)
    weight = torch.exp(-(at**2) / (2 * (0.25 + 0.2 * severity) ** 2))
    weight = (weight / weight.sum()).to(x)
    return F.conv2d(x, (weight[:, None] * weight).view(1, 1, 5, 5), padding=2)


def _contrast(x, severity, generator):
    return x * (1 - 0.17 * severity)


def _brightness(x, severity, generator):
    return x + 0.2 * severity


def _lost_pixels(x, severity, generator):
    return x * (torch.rand(x.shape, generator=generator).to(x) > 0.1 * severity)


CORRUPTIONS = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "lost pixels": _lost_pixels,
}


def corrupted(x, corruption, severity, seed):
    """Images corrupted at a severity of 1 to 5, or as they are at 0."""
    if severity == 0:
        return x
    return CORRUPTIONS[corruption](x, severity, torch.Generator().manual_seed(seed))

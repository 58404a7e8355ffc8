"""A model that is explained, and the rows of its report."""

from torch import nn


def rows(report):
    return [(call.name, call.layer, call.path) for call in report]


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.25),
        nn.Flatten(),
        nn.Linear(64, 5),
        nn.BatchNorm1d(5, momentum=None),
        nn.Dropout(0.25),
        nn.LayerNorm(5),
        nn.RMSNorm(5),
    )

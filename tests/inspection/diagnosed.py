"""Models that are diagnosed, and statistics compared."""

import torch
from torch import nn

import normreg


def network(norm=normreg.BatchNorm1d):
    return nn.Sequential(nn.Linear(6, 8), norm(8), nn.ReLU(), nn.Linear(8, 3))


class Weight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self):
        return self.weight

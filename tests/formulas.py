"""torch.nn.functional, and what normreg's functions that it has not compute, in torch's operators."""

import torch.nn.functional as F

from bench.operations import TORCH
from bench.operations.calls import ACTIVATIONS as ACTIVATIONS


def __getattr__(name):
    return getattr(TORCH, name, None) or getattr(F, name)

"""torch.nn.functional, and in torch's operators what it lacks of normreg's functions."""

import torch.nn.functional as F

from bench.operations import TORCH
from bench.operations.calls import ACTIVATIONS as ACTIVATIONS


def __getattr__(name):
    return getattr(TORCH, name, None) or getattr(F, name)

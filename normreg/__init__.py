"""Fused LayerNorm, RMSNorm, BatchNorm and Dropout: drop-in torch.nn layers on Triton kernels."""

from normreg import functional as functional
from normreg.convert import replace as replace
from normreg.convert import restore as restore
from normreg.nn import BatchNorm1d as BatchNorm1d
from normreg.nn import BatchNorm2d as BatchNorm2d
from normreg.nn import BatchNorm3d as BatchNorm3d
from normreg.nn import Dropout as Dropout
from normreg.nn import LayerNorm as LayerNorm
from normreg.nn import RMSNorm as RMSNorm

__version__ = "0.1.0"

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Dropout",
    "LayerNorm",
    "RMSNorm",
    "functional",
    "replace",
    "restore",
]

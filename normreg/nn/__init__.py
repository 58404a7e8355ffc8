"""Modules: each is its torch.nn class with another `forward`, and nothing else."""

from normreg.nn.batch_norm import BatchNorm1d as BatchNorm1d
from normreg.nn.batch_norm import BatchNorm2d as BatchNorm2d
from normreg.nn.batch_norm import BatchNorm3d as BatchNorm3d
from normreg.nn.dropout import Dropout as Dropout
from normreg.nn.layer_norm import LayerNorm as LayerNorm
from normreg.nn.rms_norm import RMSNorm as RMSNorm

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Dropout", "LayerNorm", "RMSNorm"]

"""Layers that subclass torch.nn's and override only `forward`; DropPath mirrors timm's.

A module without a counterpart in torch fuses several of torch's layers.
"""

from normreg.nn.ada_norm import AdaLayerNorm, AdaRMSNorm
from normreg.nn.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normreg.nn.batch_norm_act import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d
from normreg.nn.dropout import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    DropPath,
    FeatureAlphaDropout,
)
from normreg.nn.dropout_add import BiasActDropout, DropoutAdd, DropPathAdd
from normreg.nn.dropout_add_norm import DropoutAddLayerNorm, DropoutAddRMSNorm
from normreg.nn.group_norm import GroupNorm, GroupNormAct
from normreg.nn.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from normreg.nn.layer_norm import LayerNorm
from normreg.nn.layer_norm_channels import LayerNorm1d, LayerNorm2d, LayerNorm3d
from normreg.nn.qk_norm import QKNorm
from normreg.nn.rms_norm import RMSNorm
from normreg.nn.rms_norm_channels import RMSNorm2d
from normreg.nn.rms_norm_gated import RMSNormGated
from normreg.nn.sync_batch_norm import SyncBatchNorm, SyncBatchNormAct

__all__ = [
    "AdaLayerNorm",
    "AdaRMSNorm",
    "AlphaDropout",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "BiasActDropout",
    "DropPath",
    "DropPathAdd",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "DropoutAdd",
    "DropoutAddLayerNorm",
    "DropoutAddRMSNorm",
    "FeatureAlphaDropout",
    "GroupNorm",
    "GroupNormAct",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LayerNorm1d",
    "LayerNorm2d",
    "LayerNorm3d",
    "QKNorm",
    "RMSNorm",
    "RMSNorm2d",
    "RMSNormGated",
    "SyncBatchNorm",
    "SyncBatchNormAct",
]

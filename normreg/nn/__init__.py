"""Modules: each is its torch.nn class with another `forward`, and nothing else; DropPath is timm's.

Those that torch has not, fuse several of its layers.
"""

from normreg.nn.batch_norm import BatchNorm1d as BatchNorm1d
from normreg.nn.batch_norm import BatchNorm2d as BatchNorm2d
from normreg.nn.batch_norm import BatchNorm3d as BatchNorm3d
from normreg.nn.batch_norm_act import BatchNormAct1d as BatchNormAct1d
from normreg.nn.batch_norm_act import BatchNormAct2d as BatchNormAct2d
from normreg.nn.batch_norm_act import BatchNormAct3d as BatchNormAct3d
from normreg.nn.dropout import AlphaDropout as AlphaDropout
from normreg.nn.dropout import Dropout as Dropout
from normreg.nn.dropout import Dropout1d as Dropout1d
from normreg.nn.dropout import Dropout2d as Dropout2d
from normreg.nn.dropout import Dropout3d as Dropout3d
from normreg.nn.dropout import DropPath as DropPath
from normreg.nn.dropout import FeatureAlphaDropout as FeatureAlphaDropout
from normreg.nn.dropout_add import BiasActDropout as BiasActDropout
from normreg.nn.dropout_add import DropoutAdd as DropoutAdd
from normreg.nn.dropout_add import DropPathAdd as DropPathAdd
from normreg.nn.dropout_add_norm import DropoutAddLayerNorm as DropoutAddLayerNorm
from normreg.nn.dropout_add_norm import DropoutAddRMSNorm as DropoutAddRMSNorm
from normreg.nn.group_norm import GroupNorm as GroupNorm
from normreg.nn.instance_norm import InstanceNorm1d as InstanceNorm1d
from normreg.nn.instance_norm import InstanceNorm2d as InstanceNorm2d
from normreg.nn.instance_norm import InstanceNorm3d as InstanceNorm3d
from normreg.nn.layer_norm import LayerNorm as LayerNorm
from normreg.nn.layer_norm_channels import LayerNorm1d as LayerNorm1d
from normreg.nn.layer_norm_channels import LayerNorm2d as LayerNorm2d
from normreg.nn.layer_norm_channels import LayerNorm3d as LayerNorm3d
from normreg.nn.rms_norm import RMSNorm as RMSNorm
from normreg.nn.sync_batch_norm import SyncBatchNorm as SyncBatchNorm
from normreg.nn.sync_batch_norm import SyncBatchNormAct as SyncBatchNormAct

__all__ = [
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
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LayerNorm1d",
    "LayerNorm2d",
    "LayerNorm3d",
    "RMSNorm",
    "SyncBatchNorm",
    "SyncBatchNormAct",
]

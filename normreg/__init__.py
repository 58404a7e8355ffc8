"""Fused normalisation layers and Dropout: drop-in torch.nn layers on Triton kernels."""

from normreg import functional as functional
from normreg.functional.masks import dropout_mask as dropout_mask
from normreg.inspection.diagnose import diagnose as diagnose
from normreg.inspection.explain import explain as explain
from normreg.models.registry import as_before as as_before
from normreg.models.registry import register_layer as register_layer
from normreg.models.replace import replace as replace
from normreg.models.replace import restore as restore
from normreg.nn import AlphaDropout as AlphaDropout
from normreg.nn import BatchNorm1d as BatchNorm1d
from normreg.nn import BatchNorm2d as BatchNorm2d
from normreg.nn import BatchNorm3d as BatchNorm3d
from normreg.nn import BatchNormAct1d as BatchNormAct1d
from normreg.nn import BatchNormAct2d as BatchNormAct2d
from normreg.nn import BatchNormAct3d as BatchNormAct3d
from normreg.nn import BiasActDropout as BiasActDropout
from normreg.nn import Dropout as Dropout
from normreg.nn import Dropout1d as Dropout1d
from normreg.nn import Dropout2d as Dropout2d
from normreg.nn import Dropout3d as Dropout3d
from normreg.nn import DropoutAdd as DropoutAdd
from normreg.nn import DropoutAddLayerNorm as DropoutAddLayerNorm
from normreg.nn import DropoutAddRMSNorm as DropoutAddRMSNorm
from normreg.nn import DropPath as DropPath
from normreg.nn import DropPathAdd as DropPathAdd
from normreg.nn import FeatureAlphaDropout as FeatureAlphaDropout
from normreg.nn import GroupNorm as GroupNorm
from normreg.nn import InstanceNorm1d as InstanceNorm1d
from normreg.nn import InstanceNorm2d as InstanceNorm2d
from normreg.nn import InstanceNorm3d as InstanceNorm3d
from normreg.nn import LayerNorm as LayerNorm
from normreg.nn import LayerNorm1d as LayerNorm1d
from normreg.nn import LayerNorm2d as LayerNorm2d
from normreg.nn import LayerNorm3d as LayerNorm3d
from normreg.nn import RMSNorm as RMSNorm
from normreg.nn import SyncBatchNorm as SyncBatchNorm
from normreg.nn import SyncBatchNormAct as SyncBatchNormAct
from normreg.nn.sync_batch_norm import convert_sync_batchnorm as convert_sync_batchnorm
from normreg.training import init as init
from normreg.training.l2_penalty import l2_penalty as l2_penalty
from normreg.training.parameter_groups import parameter_groups as parameter_groups
from normreg.training.parameter_groups import register_no_decay as register_no_decay
from normreg.training.running_statistics import freeze_batch_norm as freeze_batch_norm
from normreg.training.running_statistics import recalibrate_batch_norm as recalibrate_batch_norm
from normreg.training.running_statistics import running_statistics_held as running_statistics_held
from normreg.training.running_statistics import unfreeze_batch_norm as unfreeze_batch_norm

__version__ = "0.1.0"

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
    "as_before",
    "convert_sync_batchnorm",
    "diagnose",
    "dropout_mask",
    "explain",
    "freeze_batch_norm",
    "functional",
    "init",
    "l2_penalty",
    "parameter_groups",
    "recalibrate_batch_norm",
    "register_layer",
    "register_no_decay",
    "replace",
    "restore",
    "running_statistics_held",
    "unfreeze_batch_norm",
]

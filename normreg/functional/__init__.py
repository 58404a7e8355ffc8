"""`torch.nn.functional`'s signatures: choose the path, call the operation."""

from normreg.functional.batch_norms import batch_norm, batch_norm_act
from normreg.functional.bias_act import bias_act_dropout
from normreg.functional.dropouts import (
    alpha_dropout,
    drop_path,
    dropout,
    dropout1d,
    dropout2d,
    dropout3d,
    feature_alpha_dropout,
)
from normreg.functional.norms import group_norm, instance_norm, layer_norm, layer_norm_channels, rms_norm
from normreg.functional.residual import drop_path_add, dropout_add
from normreg.functional.residual_norms import dropout_add_layer_norm, dropout_add_rms_norm
from normreg.functional.synchronized import sync_batch_norm

__all__ = [
    "alpha_dropout",
    "batch_norm",
    "batch_norm_act",
    "bias_act_dropout",
    "drop_path",
    "drop_path_add",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_add",
    "dropout_add_layer_norm",
    "dropout_add_rms_norm",
    "feature_alpha_dropout",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "layer_norm_channels",
    "rms_norm",
    "sync_batch_norm",
]

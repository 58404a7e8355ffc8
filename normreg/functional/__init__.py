"""`torch.nn.functional`'s signatures: choose the path, call the operation.

Kernels are deterministic. Forward and backward give the same bits at every call where these are the same:
values, seed, shapes, strides, dtypes, which arguments are given and which gradients wanted; the model of
the GPU and the versions of normreg, torch and Triton; and, for each tensor, whether its address is a
multiple of 16 bytes. Those that torch allocates are; a view, such as `x[1:]`, need not be. At other
addresses memory is read in smaller pieces, which may add up in another order and differ in the last digits,
as with torch's own operators. Nothing else of an address matters, nor does time: there are no atomics, and
partial results are merged in a fixed order.

What the forward gives for a row (`layer_norm`, `rms_norm`, `bias_act_dropout`, `dropout_add_layer_norm`
...) or a sample (`group_norm`, `group_norm_act`, `instance_norm`, `layer_norm_channels`,
`rms_norm_channels`) has the same bits whatever the number of others, in tensors that are aligned alike.
Gradients of parameters, and all of `batch_norm`, add up over the batch.
"""

from normreg.functional.ada_norms import ada_layer_norm, ada_rms_norm
from normreg.functional.batch_norms import batch_norm, batch_norm_act
from normreg.functional.bias_act import bias_act_dropout
from normreg.functional.channel_norms import layer_norm_channels, rms_norm_channels
from normreg.functional.dropouts import (
    alpha_dropout,
    drop_path,
    dropout,
    dropout1d,
    dropout2d,
    dropout3d,
    feature_alpha_dropout,
)
from normreg.functional.gated_norms import rms_norm_gated
from normreg.functional.group_norms import group_norm, group_norm_act
from normreg.functional.norms import instance_norm, layer_norm, rms_norm
from normreg.functional.qk_norms import qk_norm
from normreg.functional.residual import drop_path_add, dropout_add
from normreg.functional.residual_norms import dropout_add_layer_norm, dropout_add_rms_norm
from normreg.functional.synchronized import sync_batch_norm

__all__ = [
    "ada_layer_norm",
    "ada_rms_norm",
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
    "group_norm_act",
    "instance_norm",
    "layer_norm",
    "layer_norm_channels",
    "qk_norm",
    "rms_norm",
    "rms_norm_channels",
    "rms_norm_gated",
    "sync_batch_norm",
]

"""Fused normalisation layers and Dropout: drop-in torch.nn layers on Triton kernels.

In a model that is there::

    print(normreg.replace(model))      # torch.nn's layers become normreg's, in place
    print(normreg.explain(model, x))   # which calls take a kernel, and why others do not
    print(normreg.diagnose(model, x))  # mean, variance and norm of every output and gradient
    normreg.restore(model)             # torch.nn's layers again

In a new one, layers and functions have torch's names and signatures::

    layer = normreg.LayerNorm(64)
    y = normreg.functional.layer_norm(x, (64,))

`normreg.nn.__all__` lists the layers, `normreg.functional.__all__` the functions. Ask for help on one name,
as in `help(normreg.replace)`: that on a layer, or on all of normreg, repeats what layers inherit from torch.
"""

import sys as _sys

from normreg import functional, hub, nn
from normreg.export.decompositions import decomposition_table
from normreg.export.onnx import onnx_table
from normreg.functional.masks import dropout_mask
from normreg.functional.output_dtype import autocast_output
from normreg.inspection.diagnose import diagnose
from normreg.inspection.diagnosis import Diagnosis
from normreg.inspection.explain import Explanation, explain
from normreg.models.fusion.backend import fused
from normreg.models.registry import as_before, register_layer
from normreg.models.replace import replace
from normreg.models.report import Report
from normreg.models.restore import restore, restored
from normreg.models.tools import register_with
from normreg.nn import *  # noqa: F403
from normreg.nn.sync_batch_norm import convert_sync_batchnorm
from normreg.ops.recording import recorded_as
from normreg.training import init
from normreg.training.l2_penalty import l2_penalty
from normreg.training.parameter_groups import parameter_groups, register_no_decay
from normreg.training.running_statistics import (
    freeze_batch_norm,
    recalibrate_batch_norm,
    running_statistics_held,
    unfreeze_batch_norm,
)

__version__ = "0.1.0.dev0"

__all__ = [
    "Diagnosis",
    "Explanation",
    "Report",
    "as_before",
    "autocast_output",
    "convert_sync_batchnorm",
    "decomposition_table",
    "diagnose",
    "dropout_mask",
    "explain",
    "freeze_batch_norm",
    "functional",
    "fused",
    "hub",
    "init",
    "l2_penalty",
    "onnx_table",
    "parameter_groups",
    "recalibrate_batch_norm",
    "recorded_as",
    "register_layer",
    "register_no_decay",
    "register_with",
    "replace",
    "restore",
    "restored",
    "running_statistics_held",
    "unfreeze_batch_norm",
]
__all__ += nn.__all__

_sys.modules["normreg.init"] = init  # `from normreg.init import kaiming_`, where the module was before

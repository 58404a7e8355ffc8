"""The cases of `bench speed --quick`: those that decide, what matters most first."""

import torch

from . import batch_norm, bias_act_dropout, dropout, dropout_add_norm, group_norm
from .case import Case

DIRECTIONS = ("forward", "backward")

ROWS = ((16384, 4096), (8192, 8192), (4096, 16384), (131072, 128), (1024, 12288), (8192, 5120))

QUICK = (
    *(Case(norm, shape) for shape in ROWS for norm in ("rms_norm", "layer_norm")),
    Case(batch_norm.NAME, (4, 128, 1024, 1024), torch.float16),
    *(
        Case(batch_norm.NAME, shape, channels_last=channels_last)
        for shape in batch_norm.RESNET_50
        for channels_last in (False, True)
    ),
    Case(dropout.NAME, (16384, 4096)),
    Case(dropout_add_norm.NAME, (16384, 4096), layer="dropout+add+LayerNorm"),
    Case(bias_act_dropout.NAME, (8192, 11008), layer="bias+gelu+dropout"),
    Case(group_norm.NAME, (4, 320, 64, 64)),
)

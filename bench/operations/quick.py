"""The cases of `bench speed --quick`: those that decide, what matters most first."""

from . import batch_norm
from .case import cases_of, each

DIRECTIONS = ("forward", "backward")
ROWS = "16384x4096, 8192x8192, 4096x16384, 131072x128, 1024x12288, 8192x5120"
OF_ROWS = zip(cases_of("rms_norm", ROWS), cases_of("layer_norm", ROWS))

QUICK = (
    *(case for both in OF_ROWS for case in both),
    *cases_of("batch_norm", "fp16 4x128x1024x1024"),
    *cases_of("batch_norm", each(batch_norm.RESNET_50, "{}", "{} channels_last")),
    *cases_of("dropout", "16384x4096"),
    *cases_of("dropout_add_norm", "dropout+add+LayerNorm 16384x4096"),
    *cases_of("bias_act_dropout", "bias+gelu+dropout 8192x11008"),
    *cases_of("group_norm", "4x320x64x64"),
)

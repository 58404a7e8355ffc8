"""RMSNorm over channels. The formulas are in `normreg.kernels.layer_norm.channels`."""

from normreg.kernels.layer_norm import channels as kernels
from normreg.ops import layer_norm_channels
from normreg.ops.operation import Operation, Operator


def fake(x, out_dtype, save_statistics):
    return layer_norm_channels.fake(x, out_dtype, save_statistics, centered=False)


def formula(dy, x, weight, eps, wanted):
    dx, dweight, _ = layer_norm_channels.formula(dy, x, weight, eps, (*wanted, False), centered=False)
    return dx, dweight


rms_norm_channels = Operation(
    "rms_norm_channels",
    kernels.rms_norm_channels_forward,
    fake,
    ("y", "statistics"),
    Operator(
        "rms_norm_channels_backward",
        kernels.rms_norm_channels_backward,
        layer_norm_channels.fake_backward,
        ("dx", "dweight"),
    ),
    formula,
    gradients=2,
    dtypes={"parameter_dtype": ("weight", "x")},
)

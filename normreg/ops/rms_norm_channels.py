"""RMSNorm over channels. The formulas are in `normreg.kernels.layer_norm.channels`."""

from normreg.kernels.layer_norm import channels as kernels
from normreg.ops import layer_norm_channels
from normreg.ops.operation import Operation, Operator


def fake(x, out_dtype, save_statistics):
    return layer_norm_channels.fake(x, out_dtype, save_statistics, centered=False)


def formula(dy, x, weight, eps, wanted):
    dx, dweight, _ = layer_norm_channels.formula(dy, x, weight, eps, (*wanted, False), centered=False)
    return dx, dweight


def decomposed(x, weight, eps):
    return layer_norm_channels.decomposed(x, weight, None, eps, centered=False)


def decomposed_backward(dy, x, weight, statistics, wanted):
    return layer_norm_channels.decomposed_backward(dy, x, weight, statistics, (*wanted, False))[:2]


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
        decomposition=decomposed_backward,
    ),
    formula,
    gradients=2,
    dtypes={"parameter_dtype": ("weight", "x")},
    decomposition=decomposed,
)

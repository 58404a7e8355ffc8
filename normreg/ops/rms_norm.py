"""RMSNorm. The formulas are in `normreg.kernels.layer_norm.rms_norm`."""

from normreg.kernels.layer_norm import rms_norm as kernels
from normreg.ops import layer_norm
from normreg.ops.operation import Operation, Operator


def fake(x, normalized_shape, out_dtype, save_statistics):
    return layer_norm.fake(x, normalized_shape, out_dtype, save_statistics, centered=False)


def formula(dy, x, weight, normalized_shape, eps, wanted):
    wanted = (*wanted, False)
    dx, dweight, _ = layer_norm.formula(dy, x, weight, normalized_shape, eps, wanted, centered=False)
    return dx, dweight


def decomposed(x, weight, normalized_shape, eps):
    return layer_norm.decomposed(x, weight, None, normalized_shape, eps, centered=False)


def decomposed_backward(dy, x, weight, statistics, normalized_shape, wanted):
    given = dy, x, weight, statistics, normalized_shape
    return layer_norm.decomposed_backward(*given, (*wanted, False))[:2]


rms_norm_backward = Operator(
    "rms_norm_backward",
    kernels.rms_norm_backward,
    layer_norm.fake_backward,
    ("dx", "dweight"),
    decomposition=decomposed_backward,
)
rms_norm = Operation(
    "rms_norm",
    kernels.rms_norm_forward,
    fake,
    ("y", "statistics"),
    rms_norm_backward,
    formula,
    gradients=2,
    dtypes={"parameter_dtype": ("weight", "x")},
    decomposition=decomposed,
)

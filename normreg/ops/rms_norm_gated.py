"""RMSNorm and a gate. The formulas are in `normreg.kernels.gated_norm`."""

from normreg.kernels import gated_norm as kernels
from normreg.kernels.dtypes import compute_dtype
from normreg.ops import gradient
from normreg.ops.operation import Operation, Operator


def fake(x, group_size, out_dtype, save_statistics):
    statistics = None
    if save_statistics:
        statistics = x.new_empty(x.numel() // group_size, dtype=compute_dtype(x.dtype))
    return x.new_empty(x.shape, dtype=out_dtype), statistics


def fake_backward(x, gate, parameter_dtype, wanted):
    want_dx, want_dgate, *want_parameters = wanted
    dgate = gate.new_empty(gate.shape) if want_dgate else None
    dx, *of_parameters = gradient.fakes(x, x.shape[-1:], parameter_dtype, (want_dx, *want_parameters))
    return dx, dgate, *of_parameters


def formula(dy, x, gate, weight, bias, group_size, norm_before_gate, act, eps, parameter_dtype, wanted):
    def rstd_of(u):
        return gradient.statistics(u, (-1,), eps, centered=False)[1]

    inputs = dy, x, gate, weight, bias
    return gradients_of(inputs, group_size, norm_before_gate, act, rstd_of, parameter_dtype, wanted)


def in_groups(group_size, dtype, *tensors):
    """The tensors, None kept, with a dimension of groups and in the dtype."""
    return [None if t is None else t.to(dtype).unflatten(-1, (-1, group_size)) for t in tensors]


def decomposed(x, gate, weight, bias, group_size, norm_before_gate, act, eps):
    tensors = in_groups(group_size, compute_dtype(x.dtype), x, gate, weight, bias)
    x, gate, weight, bias = tensors
    value, _ = value_and_slope(gate, act)
    u = x if norm_before_gate else x * value
    y, _, rstd = gradient.normalized(u, weight, bias, (-1,), eps, centered=False)
    return (y * value if norm_before_gate else y).flatten(-2), rstd.flatten()


def decomposed_backward(
    dy, x, gate, weight, bias, statistics, group_size, norm_before_gate, act, parameter_dtype, wanted
):
    def rstd_of(u):
        return statistics.view(*u.shape[:-1], 1)

    inputs = dy, x, gate, weight, bias
    return gradients_of(inputs, group_size, norm_before_gate, act, rstd_of, parameter_dtype, wanted)


def gradients_of(inputs, group_size, norm_before_gate, act, rstd_of, parameter_dtype, wanted):
    """dx, dgate, dweight and dbias, of rstd as a function of what is normalised."""
    _, x, gate, *_ = inputs
    want_dx, want_dgate, *want_parameters = wanted
    dtypes, dtype = (x.dtype, gate.dtype), compute_dtype(x.dtype)
    dy, x, gate, weight, bias = in_groups(group_size, dtype, *inputs)
    value, slope = value_and_slope(gate, act)
    u, d = (x, dy * value) if norm_before_gate else (x * value, dy)
    rstd = rstd_of(u)
    leading = tuple(range(x.dim() - 2))
    dx, *of_parameters = gradient.normalization_backward(
        d, u, weight, None, rstd, (-1,), leading, (True, *want_parameters)
    )
    if norm_before_gate:
        dgate = dy * gradient.affine(u * rstd, weight, bias) * slope
    else:
        dx, dgate = dx * value, dx * x * slope
    return *(
        grad.flatten(-2).to(dtype) if want else None
        for grad, dtype, want in zip((dx, dgate), dtypes, (want_dx, want_dgate))
    ), *(None if grad is None else grad.flatten().to(parameter_dtype) for grad in of_parameters)


def value_and_slope(z, act):
    """act(z) and act'(z)."""
    gate = z.sigmoid()
    slope = gate * (-z).sigmoid()
    return (z * gate, gate + z * slope) if act == "silu" else (gate, slope)


rms_norm_gated_backward = Operator(
    "rms_norm_gated_backward",
    kernels.gated_norm_backward,
    fake_backward,
    ("dx", "dgate", "dweight", "dbias"),
    decomposition=decomposed_backward,
)
rms_norm_gated = Operation(
    "rms_norm_gated",
    kernels.gated_norm_forward,
    fake,
    ("y", "statistics"),
    rms_norm_gated_backward,
    formula,
    gradients=4,
    dtypes={"parameter_dtype": ("weight", "bias", "x")},
    decomposition=decomposed,
)

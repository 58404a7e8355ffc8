"""Kernel or torch, and why: the one place that decides.

Each function returns the reason why a call goes to torch's own operator, or None where it takes the
kernel. Whatever is unusual goes to torch, which handles it or raises its own error. So bad input has
torch's exception type and message, and no kernel has written anything when it is raised.

torch.compile traces these functions, so what they ask of a tensor it has to know without a graph break. A
reason that legal arguments can have must not print a number that may be symbolic.
"""

import contextlib
import functools
import inspect
import itertools

import torch
from torch._prims_common import suggest_memory_format
from torch.autograd import forward_ad
from torch.nn.parameter import Parameter

from normreg.kernels import cpu

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALF = (torch.bfloat16, torch.float16)
PLAIN = (torch.Tensor, Parameter)
# torch 2.15 has kernels for it; before, it copies the input, and its result is contiguous
GPU_GROUP_NORM_KEEPS_CHANNELS_LAST = torch.__version__ >= (2, 15)


def _torch_reason(x, others, may_be_empty=False):
    """Reasons that no kernel takes these tensors, whatever the operation. `others` may hold None."""
    if type(x) not in PLAIN:
        return f"the input is a {type(x).__name__}, not a plain tensor"
    compiling = torch.compiler.is_compiling()
    if compiling:
        if torch.compiler._is_exporting_flag:
            return "an exported program consists of torch's operators"
    elif torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return "a tracer or dispatch mode records torch's operators"
    elif x.is_neg():  # which torch.compile cannot trace; the operator it records is given the values
        return "the input is lazily negated"
    if not x.is_cuda and not (cpu.KERNELS and x.is_cpu):
        return f"there is no kernel for {x.device.type} tensors"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func and forward-mode differentiation need torch's operator"
    if x.dtype not in FLOATING:
        return f"there is no kernel for {x.dtype}"
    if x.layout is not torch.strided:
        return f"there is no kernel for {x.layout} tensors"
    if x.is_nested:
        return "the input is nested"
    if x.numel() == 0 and not may_be_empty:
        return "the input is empty"
    for other in others:
        if other is None:
            continue
        if type(other) not in PLAIN:
            return f"a parameter or buffer is a {type(other).__name__}, not a plain tensor"
        if other.device != x.device:
            return f"the input is on {x.device}, a parameter or buffer on {other.device}"
    return None


def _dtype_reason(x, parameters):
    """Parameters share one dtype: the input's, or float32 beside a 16-bit input."""
    dtype = x.dtype
    if all(parameter is None or parameter.dtype == dtype for parameter in parameters):
        return None
    dtypes = {parameter.dtype for parameter in parameters if parameter is not None}
    if dtype in HALF and dtypes == {torch.float32}:
        return None
    return f"the input is {dtype}, parameters and buffers are {', '.join(sorted(map(str, dtypes)))}"


def _channel_dtypes_reason(x, weight, bias, running_mean, running_var):
    """Statistics need not have the parameters' dtype: FSDP takes these alone to 16 bits."""
    return _dtype_reason(x, (weight, bias)) or _dtype_reason(x, (running_mean, running_var))


def _number_reason(**numbers):
    for name, number in numbers.items():
        if not isinstance(number, (int, float)):
            return f"{name} is a {type(number).__name__}, not a number"
    return None


def _rows_reason(x, normalized_shape, parameters, eps):
    reason = _torch_reason(x, parameters) or _dtype_reason(x, parameters) or _number_reason(eps=eps)
    if reason:
        return reason
    if not isinstance(normalized_shape, (tuple, list)) or not all(
        isinstance(n, int) for n in normalized_shape
    ):
        return f"normalized_shape is {normalized_shape!r}, not a sequence of ints"
    normalized_shape = tuple(normalized_shape)
    if not normalized_shape or x.shape[-len(normalized_shape) :] != normalized_shape:
        return f"the input's shape {tuple(x.shape)} does not end in normalized_shape {normalized_shape}"
    for parameter in parameters:
        if parameter is not None and parameter.shape != normalized_shape:
            return f"a parameter has shape {tuple(parameter.shape)}, not normalized_shape {normalized_shape}"
    return None


def layer_norm(x, normalized_shape, weight, bias, eps):
    return _rows_reason(x, normalized_shape, (weight, bias), eps)


def layer_norm_channels(x, weight, bias, eps):
    parameters = (weight, bias)
    reason = _torch_reason(x, parameters) or _dtype_reason(x, parameters) or _number_reason(eps=eps)
    if reason:
        return reason
    if x.dim() < 2:
        return f"the input has {x.dim()} dimensions, of at least 2"
    for parameter in parameters:
        if parameter is not None and parameter.shape != (x.shape[1],):
            return f"a parameter has shape {tuple(parameter.shape)}, the input {x.shape[1]} channels"
    return None


def rms_norm(x, normalized_shape, weight, eps):
    reason = _rows_reason(x, normalized_shape, (weight,), 0.0 if eps is None else eps)
    if reason:
        return reason
    if x.dim() in (4, 5):
        batch, channels, *spatial = x.stride()
        strides = [batch, *spatial, channels]
        if all(outer >= inner for outer, inner in itertools.pairwise(strides)):
            return "the input's strides are those of channels_last, which torch's result keeps"
    return None


def _channels_reason(
    x, running_mean, running_var, weight, bias, training, momentum, eps, num_batches_tracked=None
):
    vectors = (weight, bias, running_mean, running_var)
    cumulative = momentum is None and num_batches_tracked is not None
    reason = (
        _torch_reason(x, (*vectors, num_batches_tracked))
        or _channel_dtypes_reason(x, *vectors)
        or _number_reason(eps=eps, momentum=0.0 if cumulative else momentum)
    )
    if reason:
        return reason
    if x.dim() < 2:
        return f"the input has {x.dim()} dimensions, of at least 2"
    for vector in vectors:
        if vector is not None and vector.shape != (x.shape[1],):
            return f"a parameter or buffer has shape {tuple(vector.shape)}, the input {x.shape[1]} channels"
    if (running_mean is None) != (running_var is None):
        return "one running statistic is given without the other"
    if running_mean is not None and not (running_mean.is_contiguous() and running_var.is_contiguous()):
        return "a running statistic is not contiguous"
    if training and x.numel() == x.shape[1]:
        return "there is only one value per channel to train on"
    if not training and running_mean is None:
        return "inference needs running statistics"
    if eps <= 0:
        return f"eps is {eps}"
    return None


def batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps, num_batches_tracked):
    return _channels_reason(
        x, running_mean, running_var, weight, bias, training, momentum, eps, num_batches_tracked
    )


def _residual_reason(x, residual):
    if type(residual) not in PLAIN:
        return f"the residual is a {type(residual).__name__}, not a plain tensor"
    if residual.dtype not in FLOATING:
        return f"the residual is {residual.dtype}"
    if residual.layout is not torch.strided or residual.shape != x.shape:
        return "the residual is no strided tensor of the input's shape"
    if residual.device != x.device:
        return f"the input is on {x.device}, the residual on {residual.device}"
    if not torch.compiler.is_compiling() and residual.is_neg():
        return "the residual is lazily negated"
    return None


def batch_norm_act(
    x, residual, act, negative_slope,
    running_mean, running_var, weight, bias, training, momentum, eps, num_batches_tracked,
):  # fmt: skip
    reason = _channels_reason(
        x, running_mean, running_var, weight, bias, training, momentum, eps, num_batches_tracked
    ) or _number_reason(negative_slope=negative_slope)
    if reason or residual is None:
        return reason
    if isinstance(residual, torch.Tensor) and residual.dtype != x.dtype:
        return f"the residual is {residual.dtype}, the input {x.dtype}"
    return _residual_reason(x, residual)


def sync_batch_norm(x, residual, running_mean, running_var, weight, bias):
    """Of tensors whose shapes and devices `synchronized` has checked; an empty batch is like any other."""
    vectors = (weight, bias, running_mean, running_var)
    reason = _torch_reason(x, (*vectors, residual), may_be_empty=True)
    reason = reason or _channel_dtypes_reason(x, weight, bias, running_mean, running_var)
    if reason:
        return reason
    if running_mean is not None and not (running_mean.is_contiguous() and running_var.is_contiguous()):
        return "a running statistic is not contiguous"
    if residual is not None and (residual.dtype != x.dtype or residual.layout is not torch.strided):
        return "the residual is no strided tensor of the input's dtype"
    return None


def group_norm(x, num_groups, weight, bias, eps):
    vectors = (weight, bias)
    reason = _torch_reason(x, vectors) or _dtype_reason(x, vectors) or _number_reason(eps=eps)
    if reason:
        return reason
    if type(num_groups) is not int:
        return f"num_groups is a {type(num_groups).__name__}, not an int"
    if x.dim() < 2:
        return f"the input has {x.dim()} dimensions, of at least 2"
    if num_groups < 1 or x.shape[1] % num_groups:
        return f"{x.shape[1]} channels are not {num_groups} groups of equal size"
    for vector in vectors:
        if vector is not None and vector.shape != (x.shape[1],):
            return f"a parameter has shape {tuple(vector.shape)}, the input {x.shape[1]} channels"
    if x.numel() == num_groups:
        return "there is only one value to normalize"
    if _group_norm_keeps_channels_last(x, vectors):
        return "the input is channels_last, which torch's result keeps"
    return None


def _group_norm_keeps_channels_last(x, vectors):
    """Whether x is channels_last and torch's result, if torch takes these parameters, is so, too."""
    if x.is_contiguous() or suggest_memory_format(x) is torch.contiguous_format:
        return False
    if x.is_cpu:
        return True
    one_dtype = all(v is None or v.dtype == x.dtype for v in vectors)  # torch's GPU kernels take no other
    return GPU_GROUP_NORM_KEEPS_CHANNELS_LAST and (one_dtype or torch.is_autocast_enabled("cuda"))


def instance_norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps):
    if type(use_input_stats) is not bool:
        return f"use_input_stats is a {type(use_input_stats).__name__}, not a bool"
    reason = _channels_reason(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    if reason:
        return reason
    if use_input_stats and x.shape[2:].numel() == 1:
        return "there is only one value per channel of a sample to train on"
    return None


def dropout(x, p, inplace, leading=None):
    """`leading`: how many dimensions of x name a decision that the elements of the others share."""
    reason = _torch_reason(x, ()) or _number_reason(p=p)
    if reason:
        return reason
    if p == 0:
        return "p is 0.0: nothing is dropped"
    if not 0 < p <= 1:
        return f"p is {p}"
    if leading is not None and x.dim() < leading:
        return f"the input has {x.dim()} dimensions, of at least {leading}"
    if torch.compiler.is_compiling():
        return None  # what may not be changed in place, its copy_ refuses
    if inplace and torch.is_grad_enabled() and x.requires_grad and (x.is_leaf or x._is_view()):
        return "a leaf that requires grad, of which a view may be a part, is not to be changed in place"
    if inplace and x.is_inference() and not torch.is_inference_mode_enabled():
        return "an inference tensor is not to be changed in place outside inference mode"
    return None


def _branch_reason(x, residual, p, layer_scale, row_scale, scaled_shape):
    """`dropout`'s for what is added to a residual, in which nothing need be dropped."""
    reason = _torch_reason(x, (layer_scale, row_scale)) or _number_reason(p=p)
    if reason:
        return reason
    if not 0 <= p <= 1:
        return f"p is {p}"
    if layer_scale is not None:
        if layer_scale.shape != scaled_shape:
            return f"layer_scale has shape {tuple(layer_scale.shape)}, not {tuple(scaled_shape)}"
        if layer_scale.dtype != x.dtype and not (x.dtype in HALF and layer_scale.dtype == torch.float32):
            return f"the input is {x.dtype}, layer_scale {layer_scale.dtype}"
    if row_scale is not None:
        leading = x.shape[: x.dim() - len(scaled_shape)]
        if row_scale.dim() == 0 or row_scale.shape != leading[: row_scale.dim()]:
            return f"row_scale has shape {tuple(row_scale.shape)}, which does not begin {tuple(leading)}"
        if row_scale.dtype not in FLOATING:
            return f"row_scale is {row_scale.dtype}"
        if row_scale.requires_grad and torch.is_grad_enabled():
            return "row_scale requires grad"
    return None if residual is None else _residual_reason(x, residual)


def dropout_add(x, residual, p, layer_scale, row_scale):
    reason = _branch_reason(x, residual, p, layer_scale, row_scale, x.shape[-1:])
    if reason:
        return reason
    if p == 0 and layer_scale is None and row_scale is None:
        return "nothing is dropped or scaled: it is a sum"
    return None


def dropout_add_layer_norm(x, residual, p, layer_scale, row_scale, normalized_shape, weight, bias, eps):
    reason = _rows_reason(x, normalized_shape, (weight, bias), eps)
    return reason or _branch_reason(x, residual, p, layer_scale, row_scale, torch.Size(normalized_shape))


def dropout_add_rms_norm(x, residual, p, layer_scale, row_scale, normalized_shape, weight, eps):
    reason = _rows_reason(x, normalized_shape, (weight,), 0.0 if eps is None else eps)
    return reason or _branch_reason(x, residual, p, layer_scale, row_scale, torch.Size(normalized_shape))


def bias_act_dropout(x, bias, p, negative_slope):
    numbers = dict(p=p, negative_slope=negative_slope)
    reason = _torch_reason(x, (bias,)) or _dtype_reason(x, (bias,)) or _number_reason(**numbers)
    if reason:
        return reason
    if not 0 <= p <= 1:
        return f"p is {p}"
    if x.dim() == 0:
        return "the input has no dimensions"
    if bias is not None and bias.shape != x.shape[-1:]:
        return f"the bias has shape {tuple(bias.shape)}, the input {x.shape[-1]} columns"
    return None


def l2_penalty(parameters):
    if torch.compiler.is_compiling():
        return "torch.compile fuses torch's operators by itself"
    first = next((w for w in parameters if w.numel()), parameters[0])
    reason = _torch_reason(first, parameters)
    if reason:
        return reason
    for w in parameters:
        if w.dtype not in FLOATING:
            return f"there is no kernel for {w.dtype}"
        if w.layout is not torch.strided or w.is_nested or w.is_neg():
            return "a parameter is sparse, nested or lazily negated"
    return None


@contextlib.contextmanager
def watched(told):
    """Within it each decision is `told(operation, x, reason)`; outside it no call costs more."""

    def telling(operation, decide):
        @functools.wraps(decide)
        def decide_and_tell(x, *arguments):
            reason = decide(x, *arguments)
            told(operation, x, reason)
            return reason

        return decide_and_tell

    here = globals()
    decisions = {
        name: function
        for name, function in here.items()
        if inspect.isfunction(function) and function.__module__ == __name__ and name[0] != "_"
    }
    del decisions["watched"]
    here.update({name: telling(name, function) for name, function in decisions.items()})
    try:
        yield
    finally:
        here.update(decisions)

"""Kernel or torch, and why: the one place that decides.

Each function returns the reason why a call goes to torch's own operator, or None where it takes the
kernel. Whatever is unusual goes to torch, which handles it or raises its own error. So bad input has
torch's exception type and message, and no kernel has written anything when it is raised.

torch.compile traces these functions, so what they ask of a tensor it has to know without a graph break. A
reason that legal arguments can have must not print a number that may be symbolic.
"""

import itertools

import torch
from torch.autograd import forward_ad
from torch.nn.parameter import Parameter

from normreg.kernels.launch import INTERPRET

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALF = (torch.bfloat16, torch.float16)


def _torch_reason(x, others):
    """Reasons that no kernel takes these tensors, whatever the operation. `others` may hold None."""
    if type(x) is not torch.Tensor and type(x) is not Parameter:
        return f"the input is a {type(x).__name__}, not a plain tensor"
    compiling = torch.compiler.is_compiling()
    if compiling and torch.compiler._is_exporting_flag:
        return "an exported program consists of torch's operators"
    if not compiling and (torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack()):
        return "a tracer or dispatch mode records torch's operators"
    if not x.is_cuda and not (INTERPRET and x.is_cpu):
        return f"there is no kernel for {x.device.type} tensors"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func and forward-mode differentiation need torch's operator"
    if x.dtype not in FLOATING:
        return f"there is no kernel for {x.dtype}"
    if x.layout is not torch.strided:
        return f"there is no kernel for {x.layout} tensors"
    # torch.compile cannot trace is_neg; the operator it records is given the values
    if x.is_nested or (not compiling and x.is_neg()):
        return "the input is nested or lazily negated"
    if x.numel() == 0:
        return "the input is empty"
    for other in others:
        if other is None:
            continue
        if type(other) is not torch.Tensor and type(other) is not Parameter:
            return f"a parameter or buffer is a {type(other).__name__}, not a plain tensor"
        if other.device != x.device:
            return f"the input is on {x.device}, a parameter or buffer on {other.device}"
    return None


def _dtype_reason(x, parameters):
    """Parameters share one dtype: the input's, or float32 beside a 16-bit input."""
    dtypes = {parameter.dtype for parameter in parameters if parameter is not None}
    if not dtypes or dtypes == {x.dtype} or (x.dtype in HALF and dtypes == {torch.float32}):
        return None
    return f"the input is {x.dtype}, parameters and buffers are {', '.join(sorted(map(str, dtypes)))}"


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


def batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps, num_batches_tracked):
    vectors = (weight, bias, running_mean, running_var)
    cumulative = momentum is None and num_batches_tracked is not None
    reason = (
        _torch_reason(x, (*vectors, num_batches_tracked))
        or _dtype_reason(x, vectors)
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

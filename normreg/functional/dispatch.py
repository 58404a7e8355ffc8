"""Kernel or torch, and why: the one place that decides.

A decision returns the reason why a call goes to torch's own operator, or None where it takes the kernel.
Whatever is unusual goes to torch, which handles it or raises its own error. So bad input raises torch's
exception with torch's message, and no kernel has written anything by then.

The decisions of torch's own operations are here. A fusion's decision stands in the file of its function and
asks the same `*_reason` functions. Every decision is marked by `decision`, so that `watched` hears of it.

torch.compile traces these functions, so whatever they ask of a tensor must be known without a graph break. A
reason that legal arguments can have must not print a number that may be symbolic.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from normreg.kernels import cpu
from normreg.kernels.cpu import ABSENT
from normreg.kernels.dtypes import FLOATING
from normreg.kernels.memory_format import is_channels_last
from normreg.ops.operation import PLAIN, is_plain

is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
HALF = (torch.bfloat16, torch.float16)
# torch 2.15 has kernels for it; before, it copies the input, and its result is contiguous
GPU_GROUP_NORM_KEEPS_CHANNELS_LAST = torch.torch_version.TorchVersion(torch.__version__) >= "2.15"
# torch 2.12 put it on CUDA's list of operations in float32; before, its result has the input's dtype
AUTOCAST_RUNS_RMS_NORM = torch._C._dispatch_has_kernel_for_dispatch_key("aten::rms_norm", "AutocastCUDA")

AUTOCAST_OUTPUT = "torch"  # whose dtype a result of 16 bits has, its norms' or "input"'s: `output_dtype`

Told = Callable[[str, Any, str | None], None]
Decision = TypeVar("Decision", bound=Callable[..., str | None])
LISTENERS: list[Told] = []  # whom `watched` lets hear every decision


def decision(operation: str) -> Callable[[Decision], Decision]:
    """Marks the function that decides for `operation`. It is called with the input first, and by position."""

    def mark(reason: Decision) -> Decision:
        @functools.wraps(reason)
        def decide(x: Any, *arguments: Any) -> str | None:
            why = reason(x, *arguments)
            if LISTENERS and not torch.compiler.is_compiling():
                for told in LISTENERS:
                    told(operation, x, why)
            return why

        return cast(Decision, decide)

    return mark


@contextlib.contextmanager
def watched(told: Told) -> Iterator[None]:
    """Calls `told(operation, x, reason)` at each decision inside the with block, except while compiling."""
    LISTENERS.append(told)
    try:
        yield
    finally:
        LISTENERS.remove(told)


def tensor_reason(x: Any, others: Iterable[Any], may_be_empty: bool = False) -> str | None:
    """Why no kernel takes these tensors, whatever the operation. `others` may contain None."""
    if type(x) not in PLAIN and not is_plain(x):
        return f"the input is a {type(x).__name__}, not a plain tensor"
    compiling = torch.compiler.is_compiling()
    if not compiling:
        if torch._C._is_tracing() or torch._C._len_torch_dispatch_stack():
            return "a tracer or dispatch mode records torch's operators"
        if x.is_neg():  # torch.compile cannot trace this; the operator that it records is given the values
            return "the input is lazily negated"
        if is_wrapped(x):
            return "the input has escaped from a transform of torch.func"
    if not (x.is_cuda or (cpu.KERNELS and x.is_cpu)) or ABSENT:
        if not compiling and x.is_cpu:  # which Dynamo would put into the graph
            cpu.warn_at_the_first_tensor()
        return ABSENT or f"there is no kernel for {x.device.type} tensors"
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
    device = x.device
    for other in others:
        if other is None:
            continue
        if type(other) not in PLAIN and not is_plain(other):
            return f"a parameter or buffer is a {type(other).__name__}, not a plain tensor"
        if other.device != device:
            return f"the input is on {device}, a parameter or buffer on {other.device}"
        if not compiling and is_wrapped(other):
            return "a parameter or buffer has escaped from a transform of torch.func"
    return None


def dtype_reason(x: Tensor, parameters: Sequence[Tensor | None]) -> str | None:
    """Why no kernel takes these dtypes: parameters share the input's, or float32 beside a 16-bit input."""
    dtype = x.dtype
    for parameter in parameters:
        if parameter is not None and parameter.dtype != dtype:
            break
    else:
        return None
    dtypes = {parameter.dtype for parameter in parameters if parameter is not None}
    if dtype in HALF and dtypes == {torch.float32}:
        return None
    return f"the input is {dtype}, parameters and buffers are {', '.join(sorted(map(str, dtypes)))}"


def number_reason(**numbers: Any) -> str | None:
    for name, number in numbers.items():
        if type(number) is not float and (type(number) is bool or not isinstance(number, (float, int))):
            return f"{name} is a {type(number).__name__}, not a number"
    return None


def rows_reason(x: Any, normalized_shape: Any, parameters: Sequence[Any], eps: Any) -> str | None:
    """Why no kernel normalises x over its trailing dimensions `normalized_shape`."""
    reason = tensor_reason(x, parameters) or dtype_reason(x, parameters)
    if reason or (type(eps) is not float and (reason := number_reason(eps=eps))):
        return reason
    sizes = normalized_shape if isinstance(normalized_shape, (tuple, list)) else (None,)
    for n in sizes:
        if not isinstance(n, int):
            return f"normalized_shape is {normalized_shape!r}, not a sequence of ints"
    normalized_shape = tuple(normalized_shape)
    if not normalized_shape or x.shape[-len(normalized_shape) :] != normalized_shape:
        return f"the input's shape {tuple(x.shape)} does not end in normalized_shape {normalized_shape}"
    for parameter in parameters:
        if parameter is not None and parameter.shape != normalized_shape:
            return f"a parameter has shape {tuple(parameter.shape)}, not normalized_shape {normalized_shape}"
    return None


@decision("layer_norm")
def layer_norm(x: Any, normalized_shape: Any, weight: Any, bias: Any, eps: Any) -> str | None:
    return rows_reason(x, normalized_shape, (weight, bias), eps)


@decision("rms_norm")
def rms_norm(x: Any, normalized_shape: Any, weight: Any, eps: Any) -> str | None:
    reason = rows_reason(x, normalized_shape, (weight,), 0.0 if eps is None else eps)
    if reason:
        return reason
    if x.dim() in (4, 5):
        batch, channels, *spatial = x.stride()
        strides = [batch, *spatial, channels]
        if all(outer >= inner for outer, inner in itertools.pairwise(strides)):
            return "the input's strides are those of channels_last, which torch's result keeps"
    return None


def vectors_reason(x: Tensor, vectors: Sequence[Tensor | None]) -> str | None:
    """Why `vectors` are not one value for each of x's channels."""
    if x.dim() < 2:
        return f"the input has {x.dim()} dimensions, of at least 2"
    for vector in vectors:
        if vector is not None and vector.shape != (x.shape[1],):
            return f"a parameter or buffer has shape {tuple(vector.shape)}, the input {x.shape[1]} channels"
    return None


def channel_dtypes_reason(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any) -> str | None:
    """Why no kernel takes these dtypes; those of parameters and statistics may differ, as under FSDP."""
    return dtype_reason(x, (weight, bias)) or dtype_reason(x, (mean, var))


def running_reason(mean: Tensor | None, var: Tensor | None) -> str | None:
    if mean is None or var is None:
        return None if mean is var else "one running statistic is given without the other"
    if not (mean.is_contiguous() and var.is_contiguous()):
        return "a running statistic is not contiguous"
    return None


def channels_reason(
    x: Any, mean: Any, var: Any, weight: Any, bias: Any, training: Any, momentum: Any, eps: Any, n: Any = None
) -> str | None:
    """Why no kernel normalises x's channels. mean, var: running statistics; n: num_batches_tracked."""
    vectors = (weight, bias, mean, var)
    cumulative = momentum is None and n is not None
    reason = (
        tensor_reason(x, (*vectors, n))
        or channel_dtypes_reason(x, weight, bias, mean, var)
        or number_reason(eps=eps, momentum=0.0 if cumulative else momentum)
        or vectors_reason(x, vectors)
        or running_reason(mean, var)
    )
    if reason:
        return reason
    if type(training) is not bool:
        return f"training is a {type(training).__name__}, not a bool"
    if training and x.numel() == x.shape[1]:
        return "there is only one value per channel to train on"
    if not training and mean is None:
        return "inference needs running statistics"
    if eps <= 0:
        return f"eps is {eps}"
    return None


batch_norm = decision("batch_norm")(channels_reason)


def groups_reason(x: Any, num_groups: Any, weight: Any, bias: Any, eps: Any) -> str | None:
    """Why no kernel normalises x over groups of its channels."""
    vectors = (weight, bias)
    reason = tensor_reason(x, vectors) or dtype_reason(x, vectors) or number_reason(eps=eps)
    if reason:
        return reason
    if type(num_groups) is not int:
        return f"num_groups is a {type(num_groups).__name__}, not an int"
    if reason := vectors_reason(x, vectors):
        return reason
    if num_groups < 1 or x.shape[1] % num_groups:
        return f"{x.shape[1]} channels are not {num_groups} groups of equal size"
    if x.numel() == num_groups:
        return "there is only one value to normalize"
    return None


group_norm = decision("group_norm")(groups_reason)


def group_norm_keeps_channels_last(x: Tensor, vectors: Sequence[Tensor | None]) -> bool:
    """Whether x is channels_last and torch's result with these parameters is channels_last too."""
    if not is_channels_last(x):
        return False
    one_dtype = all(v is None or v.dtype == x.dtype for v in vectors)  # torch's GPU kernels take no other
    on_gpu = GPU_GROUP_NORM_KEEPS_CHANNELS_LAST and (one_dtype or torch.is_autocast_enabled("cuda"))
    return x.is_cpu or on_gpu


@decision("instance_norm")
def instance_norm(
    x: Any, mean: Any, var: Any, weight: Any, bias: Any, use_input_stats: Any, momentum: Any, eps: Any
) -> str | None:
    if type(use_input_stats) is not bool:
        return f"use_input_stats is a {type(use_input_stats).__name__}, not a bool"
    reason = channels_reason(x, mean, var, weight, bias, use_input_stats, momentum, eps)
    if reason:
        return reason
    if use_input_stats and math.prod(x.shape[2:]) == 1:
        return "there is only one value per channel of a sample to train on"
    return None


@decision("dropout")
def dropout(x: Any, p: Any, inplace: bool, leading: int | None = None) -> str | None:
    """leading: number of x's first dimensions whose indices name an outcome that all other elements share."""
    reason = tensor_reason(x, ()) or number_reason(p=p)
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


def layer_norm_dtype(x: Tensor, asked: torch.dtype | None = None) -> torch.dtype:
    """dtype of layer_norm's and group_norm's result: the one asked for, else torch's, float32 by autocast."""
    as_torch = AUTOCAST_OUTPUT == "torch" and x.is_cuda and x.dtype in HALF
    return asked or (torch.float32 if as_torch and torch.is_autocast_enabled("cuda") else x.dtype)


def rms_norm_dtype(x: Tensor, asked: torch.dtype | None = None) -> torch.dtype:
    return asked or (layer_norm_dtype(x) if AUTOCAST_RUNS_RMS_NORM else x.dtype)

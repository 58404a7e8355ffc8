"""`dropout_add` and `drop_path_add`: the end of a residual branch, in one launch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor

from normreg.functional import dispatch
from normreg.functional.dropouts import check_drop_prob, check_generator, dropout_in_torch
from normreg.functional.tracing import one_call_when_traced
from normreg.kernels.dropout.drop import of_elements, of_samples
from normreg.kernels.dtypes import FLOATING
from normreg.ops import dropout as _dropout
from normreg.ops import dropout_add as _dropout_add
from normreg.ops.operation import is_plain

NO_TENSOR = (
    "expected a residual that is a tensor, got {!r}: pass a tensor, such as torch.full_like(input, 3.0)"
)


class Branch(NamedTuple):
    """The end of a residual branch: z = residual + dropout(x) * row_scale * layer_scale."""

    x: Tensor
    residual: Tensor | None
    p: float
    row_scale: Tensor | None
    layer_scale: Tensor | None
    generator: torch.Generator | None
    drop_path: _dropout.Rule | None = None  # what drops samples, in the place of dropout

    @property
    def only_adds(self) -> bool:
        return self.p == 0 and self.layer_scale is None and self.row_scale is None


@one_call_when_traced
def dropout_add(
    input: Tensor,
    residual: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    row_scale: Tensor | None = None,
    layer_scale: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Dropout, then the sum with a residual: the end of a residual branch, in one launch.

    z = residual + dropout(x) * row_scale * layer_scale. The forward reads x and the residual and writes z.
    The backward draws the mask again; x is kept only for the gradient of layer_scale.

    Args:
        input: (N, *, C), float16, bfloat16, float32 or float64, any strides.
        residual: of input's shape and a floating-point dtype.
        p, training, generator: those of `dropout`. For p = 0 and without training nothing is dropped.
        row_scale: a factor for each row or sample. Its shape is the beginning of input's, such as (N,), and
            has fewer dimensions. A row_scale that requires a gradient takes torch's path.
        layer_scale: (C,), of input's dtype, or float32 beside 16 bits.

    Returns a tensor of input's shape, in the dtype that input and residual are promoted to. Where the kernel
    does not apply (`normreg.functional.dispatch`), this is the equivalent below. Raises ValueError for p
    outside [0, 1], for another shape of residual, row_scale or layer_scale and another dtype of residual,
    TypeError for a generator that is not a torch.Generator, and RuntimeError for one of another device.

    Equivalent::

        z = residual + F.dropout(x, p, training) * row_scale[:, None] * layer_scale

    Sources: Srivastava et al., "Dropout" (JMLR 2014); layer scale: Touvron et al., "Going deeper with Image
    Transformers" (ICCV 2021), arXiv 2103.17239
    """
    return _sum(Branch(input, residual, p if training else 0.0, row_scale, layer_scale, generator))


@one_call_when_traced
def drop_path_add(
    x: Tensor,
    residual: Tensor,
    drop_prob: float = 0.0,
    training: bool = False,
    scale_by_keep: bool = True,
    *,
    layer_scale: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""`drop_path` (stochastic depth), then the sum with a residual, in one launch.

    z = residual + drop_path(x) * layer_scale, for pre-norm blocks whose norm lives elsewhere.

    Args:
        x, drop_prob, training, scale_by_keep, generator: those of `drop_path`; x is (N, *, C).
        residual, layer_scale: those of `dropout_add`.

    Returns and raises what `dropout_add` does. Without a layer scale, the result of a channels-last x is
    channels-last, and x is not copied.

    Equivalent::

        z = residual + drop_path(x, drop_prob, training) * layer_scale

    Source: Huang et al., "Deep Networks with Stochastic Depth" (ECCV 2016), arXiv 1603.09382
    """
    p = drop_prob if training else 0.0
    rule = _dropout.Rule(p, 1, "scaled" if scale_by_keep else "unscaled")
    return _sum(Branch(x, residual, p, None, layer_scale, generator, rule))


def _sum(branch: Branch) -> Tensor:
    x, residual, p, row_scale, layer_scale, generator, drop_path = branch
    scaled_shape = x.shape[-1:]
    check_residual(x, residual)
    check_scales(branch, scaled_shape)
    if generator is not None:
        check_generator(x, generator)
    if dropout_add_reason(x, branch, scaled_shape):
        assert residual is not None  # which check_residual has refused
        check_can_be_added(residual)
        return residual + branch_in_torch(branch)
    rule = of_samples(p, drop_path.constants == "scaled") if drop_path and p else of_elements(p, x.dtype)
    return _dropout_add.dropout_add(x, residual, layer_scale, row_scale, rule, generator)


@dispatch.decision("dropout_add")
def dropout_add_reason(x: Tensor, branch: Branch, scaled_shape: Sequence[int]) -> str | None:
    reason = branch_reason(branch, scaled_shape)
    if reason:
        return reason
    return "nothing is dropped or scaled: it is a sum" if branch.only_adds else None


def branch_reason(branch: Branch, scaled_shape: Sequence[int]) -> str | None:
    """Why no kernel computes z. scaled_shape: the trailing dimensions, which layer_scale multiplies."""
    x, residual, p, row_scale, layer_scale, _, _ = branch
    reason = dispatch.tensor_reason(x, (layer_scale, row_scale)) or dispatch.number_reason(p=p)
    if reason:
        return reason
    if not 0 <= p <= 1:
        return f"p is {p}"
    if layer_scale is not None:
        if layer_scale.shape != scaled_shape:
            return f"layer_scale has shape {tuple(layer_scale.shape)}, not {tuple(scaled_shape)}"
        if dispatch.dtype_reason(x, (layer_scale,)):
            return f"the input is {x.dtype}, layer_scale {layer_scale.dtype}"
    if row_scale is not None:
        leading = x.shape[: x.dim() - len(scaled_shape)]
        if row_scale.dim() == 0 or row_scale.shape != leading[: row_scale.dim()]:
            return f"row_scale has shape {tuple(row_scale.shape)}, which does not begin {tuple(leading)}"
        if row_scale.dtype not in FLOATING:
            return f"row_scale is {row_scale.dtype}"
        if row_scale.requires_grad and torch.is_grad_enabled():
            return "row_scale requires grad"
    return None if residual is None else residual_reason(x, residual)


def residual_reason(x: Tensor, residual: Any) -> str | None:
    """Why no kernel adds `residual` to a result of x's shape."""
    if not is_plain(residual):
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


def check_residual(x: Tensor, residual: Any) -> None:
    """Refuses a residual that torch would broadcast in silence."""
    if not isinstance(residual, Tensor):
        raise ValueError(NO_TENSOR.format(residual))
    if residual.shape != x.shape:
        sizes = zip(residual.shape[::-1], x.shape[::-1])
        expands = residual.dim() <= x.dim() and all(own in (1, size) for own, size in sizes)
        remedy = "expand it first, by residual.expand_as(input)" if expands else "pass one of that shape"
        raise ValueError(
            f"expected a residual of the input's shape {list(x.shape)}, got {list(residual.shape)}: {remedy}"
        )


def check_can_be_added(residual: Any) -> None:
    """Refuses what torch would add in silence, though it is no result of another branch."""
    if isinstance(residual, torch.fx.Proxy):
        return
    if not isinstance(residual, Tensor):
        raise ValueError(NO_TENSOR.format(residual))
    if not residual.dtype.is_floating_point:
        raise ValueError(
            f"expected a residual of a floating-point dtype, got {residual.dtype}: convert it by .float()"
        )


def check_broadcasts(x: Any, residual: Any) -> None:
    """Refuses what torch would refuse to add, before anything has been computed."""
    if not (is_plain(x) and is_plain(residual)) or x.is_nested or residual.is_nested:
        return
    if residual.device != x.device and residual.dim():
        raise ValueError(
            f"expected a residual on the input's device, {x.device}, got one on {residual.device}: move it "
            f"by .to({str(x.device)!r})"
        )
    try:
        torch.broadcast_shapes(x.shape, residual.shape)
    except RuntimeError:
        raise ValueError(
            f"expected a residual of the input's shape {list(x.shape)}, or one that is broadcast to it, got "
            f"{list(residual.shape)}: pass the output of a branch with as many channels and positions"
        ) from None


def check_scales(branch: Branch, scaled_shape: Sequence[int]) -> None:
    """Refuses scales that torch would broadcast in silence."""
    x, _, _, row_scale, layer_scale, _, _ = branch
    if layer_scale is not None and layer_scale.shape != scaled_shape:
        raise ValueError(
            f"expected layer_scale of shape {tuple(scaled_shape)}, got {tuple(layer_scale.shape)}: it "
            "has one value for each element of a row; make it anew, as by torch.ones(input.shape[-1])"
        )
    if row_scale is None:
        return
    leading = x.shape[: x.dim() - len(scaled_shape)]
    if row_scale.dim() == 0 or row_scale.shape != leading[: row_scale.dim()]:
        raise ValueError(
            f"expected row_scale's shape to be {tuple(leading)} or the beginning of it, got "
            f"{tuple(row_scale.shape)}: pass one value for each row or sample"
        )


def branch_in_torch(branch: Branch) -> Tensor:
    """dropout(x) * row_scale * layer_scale, without the residual."""
    x, _, p, row_scale, layer_scale, generator, drop_path = branch
    if drop_path is None:
        z = dropout_in_torch(x, p, generator)
    else:
        check_drop_prob(p)
        z = x if p == 0 else _dropout.in_torch(x, drop_path, generator=generator)
    if row_scale is not None:
        z = z * row_scale.view(*row_scale.shape, *[1] * (x.dim() - row_scale.dim())).to(x.dtype)
    return z if layer_scale is None else z * layer_scale.to(x.dtype)

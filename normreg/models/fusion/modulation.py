"""Reads what scales and shifts the result of a norm, and what a gate multiplies in front of it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from normreg.kernels.ada_norm import is_held
from normreg.kernels.dtypes import FLOATING, compute_dtype
from normreg.models.fusion import steps
from normreg.models.fusion.steps import MULTIPLICATIONS, NORMREG, Step, value_of

MODULATIONS = ("scale", "shift", "gate")
ROWS = "rows"
NONE = dict.fromkeys((*MODULATIONS, "residual", "bias"))


class Modulated(NamedTuple):
    """A norm and the calls that scale and shift its result, which may be one operator already."""

    norm: Step
    source: Node  # what is normalised
    given: dict[str, Any]  # arguments of that operator by name
    behind: tuple[Step, ...] = ()
    beside: tuple[Node, ...] = ()  # 1 + scale, and what widens the source for the norm

    @property
    def last(self) -> Step:
        return (self.norm, *self.behind)[-1]


def of_operator(call: Step) -> Modulated | None:
    """A modulated norm that is one operator, of what is no sum yet."""
    return Modulated(call, call.source, call.given) if call.given["residual"] is None else None


def behind(norm: Step, order: dict[Node, int]) -> Iterator[Modulated]:
    """The calls behind a norm over the last dimension, those with a shift first."""
    if len(norm.given["normalized_shape"]) != 1:
        return
    centered = norm.call.target is NORMREG.layer_norm.default
    own = NONE | {name: norm.given.get(name) for name in ("weight", "bias", "eps")} | dict(centered=centered)
    for product in norm.node.users:
        factors = steps.operands(product, order, MULTIPLICATIONS)
        for factor in factors if norm.node in factors else ():
            if scale := steps.increased(factor):
                times = steps.product_of(product, norm.node)
                scaled = Modulated(norm, norm.source, own | dict(scale=scale), (times,), (factor,))
                for plus in product.users:
                    if product in steps.operands(plus, order):
                        moved = steps.sum_of(plus, product)
                        given = scaled.given | dict(shift=moved.given["residual"])
                        yield from _in_float32(scaled._replace(given=given, behind=(times, moved)))
                yield from _in_float32(scaled)


def _in_float32(modulated: Modulated) -> Iterator[Modulated]:
    """Also with what rounds the result behind it, and with what widens the norm's input in front of it."""
    user, *others = modulated.last.node.users or (None,)
    rounding = None if others else steps.cast(user)
    if rounding and value_of(user).dtype.itemsize >= value_of(rounding.source).dtype.itemsize:
        rounding = None
    rounded = modulated._replace(behind=(*modulated.behind, rounding)) if rounding else modulated
    if source := steps.widened(modulated.source):
        yield rounded._replace(source=source, beside=(*modulated.beside, modulated.source))
    if rounding:
        yield rounded
    yield modulated


def gated(term: Node, order: dict[Node, int]) -> Iterator[Step]:
    """A term of a sum as the product of a value and a gate, whichever these may be."""
    for value in steps.operands(term, order, MULTIPLICATIONS):
        yield steps.product_of(term, value)


def why_not_modulated(given: dict[str, Any], of_operator: bool) -> str | None:
    """Why the operator does not take these modulations of these rows, or None.

    of_operator: scale and shift are those of that operator already, whose two sizes are samples and columns.
    """
    x, kinds = value_of(given["x"]), {}
    for name in MODULATIONS:
        if given[name] is None:
            continue
        m, wide = value_of(given[name]), compute_dtype(x.dtype)
        if m.device != x.device:
            return f"the input is on {x.device}, the {name} on {m.device}"
        if m.dtype not in FLOATING or torch.promote_types(wide, m.dtype) != wide:
            return f"the input is {x.dtype}, the {name} {m.dtype}"
        kinds[name] = _vectors(x, m, of_operator and name != "gate")
        if kinds[name] is None:
            return f"the {name} of shape {[*m.shape]} is not one of samples or rows of {[*x.shape]}"
    if len({kind for kind in kinds.values() if kind != ROWS}) > 1:
        return "modulations are of one and of all samples"
    if "shift" in kinds and (kinds["scale"] == ROWS) != (kinds["shift"] == ROWS):
        return "one of scale and shift is of rows, the other is not"
    residual = value_of(given["residual"])
    z_dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    if z_dtype != given["z_dtype"]:
        return f"the sum is {given['z_dtype']}, its terms {x.dtype} and {residual.dtype}"
    if torch.promote_types(compute_dtype(x.dtype), given["out_dtype"]) != compute_dtype(x.dtype):
        return f"the input is {x.dtype}, the result {given['out_dtype']}"
    return None if is_held(x.shape[-1], z_dtype) else "a row is wider than the tile of a program"


def _vectors(x: torch.Tensor, m: torch.Tensor, of_operator: bool) -> str | None:
    """What a modulation has a vector for: rows, or how many samples; None for others.

    Sizes are compared in words, because they may be symbols.
    """
    sizes, full = [*map(str, m.shape)], [*map(str, x.shape)]
    if sizes == full:
        return ROWS
    if not 0 < len(sizes) <= len(full) or sizes[-1] != full[-1]:
        return None
    leading = sizes[:-1]
    while leading and leading[-1] == "1":
        leading.pop()
    broadcasts = len(sizes) == len(full) or of_operator or not leading
    return " x ".join(leading or "1") if broadcasts and leading == full[: len(leading)] else None

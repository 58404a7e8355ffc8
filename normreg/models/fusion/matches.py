"""The patterns: each is calls, and the operator of normreg that takes their place."""

import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.fx import Node

from normreg.kernels import cpu
from normreg.kernels.device.activations import LINES
from normreg.kernels.dropout.drop import of_elements
from normreg.kernels.dtypes import FLOATING
from normreg.models.fusion import steps
from normreg.models.fusion.modulation import Modulated, why_not_modulated
from normreg.models.fusion.steps import NORMREG, Step, value_of

# the functions of normreg.functional that compute the same
PATTERNS = (
    "ada_layer_norm",
    "ada_rms_norm",
    "batch_norm_act",
    "bias_act_dropout",
    "dropout_add",
    "dropout_add_layer_norm",
    "dropout_add_rms_norm",
    "group_norm_act",
)
TO_BE_DRAWN = object()  # in the place of a seed


class Match(NamedTuple):
    """Calls, and the operator that takes their place."""

    function: str  # one of PATTERNS
    steps: tuple[Step, ...]
    target: Any
    given: dict[str, Any]  # arguments by name
    results: tuple[Node, ...]  # whose values the operator's first results are
    keeps: tuple[Node, ...] = ()  # values that its backward needs and theirs did not
    first: tuple[Any, ...] = ()  # function and arguments of a call that takes the first one's place
    beside: tuple[Node, ...] = ()  # calls that it computes as well, which others may use

    @property
    def named(self) -> list[Node]:
        """A call of each step, by which reports name it."""
        return [step.call or step.node for step in self.steps]

    @property
    def nodes(self) -> list[Node]:
        """All calls, in order."""
        return list(
            dict.fromkeys(node for step in self.steps for node in (step.call or step.node, step.node))
        )

    @property
    def arguments(self) -> tuple[Any, ...]:
        return tuple(self.given[argument.name] for argument in self.target._schema.arguments)

    @property
    def place(self) -> Node:
        """The call in front of which the operator stands: the last, or the first that uses the sum else."""
        own = {*self.nodes, *self.beside}
        users = [user for result in self.results[1:] for user in result.users if user not in own]
        return min([self.named[-1], *users])


def batch_norm_act(norm: Step, act: Step, plus: Step | None = None) -> Match:
    training = norm.call.target is NORMREG.batch_norm.default
    target = NORMREG.batch_norm_act if training else NORMREG.batch_norm_act_inference
    save, residual = value_of(act.node).requires_grad, plus and plus.given["residual"]
    keeps = (plus.given["residual"],) if plus and save and act.given["act"] not in LINES else ()
    found = (norm, plus, act) if plus else (norm, act)
    given = norm.given | act.given | dict(residual=residual, save=save)
    return Match("batch_norm_act", found, target.default, given, (act.node,), keeps)


def group_norm_act(norm: Step, act: Step) -> Match:
    given = norm.given | act.given | dict(save_statistics=value_of(act.node).requires_grad)
    return Match("group_norm_act", (norm, act), NORMREG.group_norm_act.default, given, (act.node,))


def _dropped(dropout: Step | None, x: Node) -> dict[str, Any]:
    """What an operator is told of dropout."""
    p, seed = (0.0, None) if dropout is None else (dropout.given["p"], dropout.given.get("seed", TO_BE_DRAWN))
    bits = of_elements(p, value_of(x).dtype).bits
    return dict(x=x, p=p, bits=bits, seed=seed, layer_scale=None, row_scale=None)


def dropout_add_norm(norm: Step, plus: Step, before: Step | None = None) -> Match:
    """before: dropout or, where what is added last broadcasts, a sum: (a + b) + c is (a + c) + b."""
    centered, prenorm = norm.call.target is NORMREG.layer_norm.default, len(plus.node.users) > 1
    dropout = before if before and before.kind == "dropout" else None
    given = dict(bias=None, centered=centered, save_z=prenorm)
    given |= norm.given | plus.given | _dropped(dropout, (dropout or plus).source)
    given |= dict(z_dtype=value_of(plus.node).dtype, save_statistics=value_of(norm.node).requires_grad)
    first: tuple[Any, ...] = ()
    if before and before.kind == "+":
        first = operator.add, before.source, plus.given["residual"]
        given["residual"] = before.given["residual"]
    function = "dropout_add_layer_norm" if centered else "dropout_add_rms_norm"
    found = (before, plus, norm) if before else (plus, norm)
    results = (norm.node, plus.node) if prenorm else (norm.node,)
    return Match(function, found, NORMREG.dropout_add_norm.default, given, results, first=first)


def dropout_add(dropout: Step, plus: Step) -> Match:
    given = plus.given | _dropped(dropout, dropout.source) | dict(shared=False, scaled=True)
    given |= dict(cols=value_of(dropout.source).numel(), out_dtype=value_of(plus.node).dtype)
    return Match("dropout_add", (dropout, plus), NORMREG.dropout_add.default, given, (plus.node,))


def bias_act_dropout(act: Step, dropout: Step, linear: Step | None = None) -> Match:
    given = act.given | _dropped(dropout, act.source) | dict(bias=linear and linear.given["bias"])
    found = (linear, act, dropout) if linear else (act, dropout)
    keeps = (act.source,) if value_of(dropout.node).requires_grad and not linear else ()
    first = (F.linear, *linear.node.args[:2], None) if linear else ()
    return Match(
        "bias_act_dropout", found, NORMREG.bias_act_dropout.default, given, (dropout.node,), keeps, first
    )


def ada_norm(
    modulated: Modulated, plus: Step | None = None, gate: Step | None = None, rounding: Step | None = None
) -> Match:
    """plus, gate, rounding: the sum that is normalised, the product that is a term of it, what rounds it."""
    norm, source, given, _, beside = modulated
    last, before = modulated.last, tuple(step for step in (gate, plus, rounding) if step)
    x, residual = before[0].source if before else source, plus and plus.given["residual"]
    if rounding:  # whose sum is one of values of 16 bits then
        narrow = steps.widened(x), steps.widened(residual)
        beside = (*beside, *(term for term, found in zip((x, residual), narrow) if term and found))
        x, residual = narrow[0] or x, narrow[1] or residual
    given = given | dict(x=x, residual=residual, gate=gate and gate.given["factor"])
    save, prenorm = value_of(last.node).requires_grad, bool(before) and len(source.users) > 1
    given |= dict(z_dtype=value_of(source).dtype, out_dtype=value_of(last.node).dtype)
    given |= dict(save_z=prenorm, save_statistics=save)
    keeps = [given[name] for name in ("scale", "shift") if modulated.behind and given[name] is not None]
    if gate:  # which keeps each factor for the gradient of the other
        factors = (x, given["gate"]), (given["gate"], x)
        keeps += [kept for other, kept in factors if not value_of(other).requires_grad]
    if (gate or not before) and x is not (gate or norm).source:  # of which a wider copy was kept
        keeps.append(x)
    return Match(
        "ada_layer_norm" if given["centered"] else "ada_rms_norm",
        (*before, norm, *modulated.behind),
        NORMREG.ada_norm.default,
        given,
        (last.node, source) if prenorm else (last.node,),
        keeps=tuple(keeps) if save else (),
        beside=beside,
    )


def shape_of(node: Any) -> str:
    """A value's shape in words, because sizes may be symbols."""
    return str(value_of(node).shape)


def why_no_kernel(match: Match) -> str | None:
    """Why the operator does not take these tensors, or None."""
    x, residual, bias = (value_of(match.given.get(name)) for name in ("x", "residual", "bias"))
    if not (x.is_cuda or (x.is_cpu and cpu.KERNELS)) or cpu.ABSENT:
        return cpu.ABSENT or f"there is no kernel for {x.device.type} tensors"
    if residual is not None and shape_of(match.given["residual"]) != shape_of(match.given["x"]):
        return "the sum broadcasts"
    if residual is not None and residual.device != x.device:
        return f"the terms of the sum are on {x.device} and {residual.device}"
    for tensor in (x, x if residual is None else residual):
        if tensor.dtype not in FLOATING or 0 in (tensor.dim(), tensor.numel()):
            return f"there is no kernel for {tensor.dtype} of shape {list(tensor.shape)}"
    if match.function == "batch_norm_act" and residual is not None and residual.dtype != x.dtype:
        return f"the terms of the sum are {x.dtype} and {residual.dtype}"
    beside = (x.dtype, torch.float32 if x.dtype.itemsize == 2 else x.dtype)
    if match.function == "bias_act_dropout" and bias is not None and bias.dtype not in beside:
        return f"the bias is {bias.dtype}, the input {x.dtype}"
    is_modulated = match.target is NORMREG.ada_norm.default
    of_operator = is_modulated and match.named[-1].target is match.target
    return why_not_modulated(match.given, of_operator) if is_modulated else None

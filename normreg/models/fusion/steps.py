"""Reads the calls of a graph: each is a `Step` of a pattern, or nothing."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from normreg.kernels.dtypes import FLOATING

NORMREG = torch.ops.normreg
DROPOUT = NORMREG.dropout.default
# {operator of normreg with several results: kind of step}
NORMS: dict[Any, str] = {
    NORMREG.batch_norm.default: "batch norm",
    NORMREG.batch_norm_inference.default: "batch norm",
    NORMREG.group_norm.default: "group norm",
    NORMREG.layer_norm.default: "norm",
    NORMREG.rms_norm.default: "norm",
    NORMREG.ada_norm.default: "modulated norm",
}
INPLACE = {"input": None, "inplace": False}
# {function or method: activation, and {name: default} of its arguments, in order}
ACTIVATIONS: dict[Any, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), ("relu", INPLACE)),
    F.relu6: ("relu6", INPLACE),
    F.hardtanh: ("relu6", {"input": None, "min_val": -1.0, "max_val": 1.0, "inplace": False}),
    F.leaky_relu: ("leaky_relu", {"input": None, "negative_slope": 0.01, "inplace": False}),
    F.silu: ("silu", INPLACE),
    F.gelu: ("gelu", {"input": None, "approximate": "none"}),
    F.hardswish: ("hardswish", INPLACE),
}
DROPOUTS = {"input": None, "p": 0.5, "training": True, "inplace": False}
# {function or method: whether it overwrites its first operand}
ADDITIONS: dict[Any, bool] = {
    operator.add: False,
    torch.add: False,
    "add": False,
    operator.iadd: True,
    "add_": True,
}
CASTS = ("bfloat16", "float", "half", "to", "type_as")
MULTIPLICATIONS: dict[Any, bool] = {
    operator.mul: False,
    torch.mul: False,
    "mul": False,
    operator.imul: True,
    "mul_": True,
}


class Step(NamedTuple):
    """A call that can be a part of a pattern."""

    kind: str
    node: Node  # its value
    source: Node  # the value that it takes from the step before
    given: dict[str, Any]  # its other arguments by name
    overwritten: Node | None = None
    call: Any = None  # the node of an operator with several results, of which `node` is the first


def value_of(node: Any) -> Any:
    """What Dynamo had in a node's place: a tensor without values, or a number."""
    return node.meta.get("example_value") if isinstance(node, Node) else node


def written_by(operator: Any) -> list[str]:
    """The names of the arguments that an operator overwrites."""
    schema = operator._schema.arguments
    return [a.name for a in schema if a.alias_info is not None and a.alias_info.is_write]


def arguments(node: Any, defaults: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """A call's arguments by name, for functions None where they are not those of `defaults`, or computed."""
    if defaults is None:
        return (
            dict(zip([argument.name for argument in node.target._schema.arguments], node.args)) | node.kwargs
        )
    given = dict(zip(defaults, node.args)) | node.kwargs
    if len(given) < len(node.args) + len(node.kwargs) or not given.keys() <= defaults.keys():
        return None
    computed = any(isinstance(value, Node) for name, value in given.items() if name != "input")
    return None if computed else defaults | given


def step_of(node: Any, kind: str | None = None) -> Step | None:
    """The step that a call is, if it is of the kind, or None; of sums, `sum_of` knows."""
    step = _step_of(node)
    return step if step is None or kind is None or step.kind == kind else None


def _step_of(node: Any) -> Step | None:
    if not isinstance(node, Node) or not node.args or not isinstance(value_of(node), Tensor):
        return None
    source: Any = node.args[0]
    if not isinstance(source, Node):
        return None
    if node.target is operator.getitem and node.args[1] == 0 and source.target in NORMS:
        norm: Any = arguments(source)
        return (
            Step(NORMS[source.target], node, norm["x"], norm, call=source) if len(source.users) == 1 else None
        )
    if node.target in (DROPOUT, F.dropout):
        return _dropout(node, source)
    if node.target not in ACTIVATIONS:
        return None
    act, defaults = ACTIVATIONS[node.target]
    given = arguments(node, defaults)
    if given is None or (node.target is F.hardtanh and (given["min_val"], given["max_val"]) != (0, 6)):
        return None
    act = "gelu_tanh" if given.get("approximate") == "tanh" else act
    overwrites = given.get("inplace") or node.target in (torch.relu_, "relu_")
    options = dict(act=act, negative_slope=float(given.get("negative_slope", 0.01)))
    return Step("act", node, source, options, source if overwrites else None)


def _dropout(node: Node, source: Node) -> Step | None:
    """Dropout of elements, by normreg's operator or torch's function."""
    if node.target is DROPOUT:
        given: Any = arguments(node)
        elements = (given["leading"], given["constants"], given["linear"]) == (None, "scaled", False)
    else:
        given = arguments(node, DROPOUTS)
        elements = given is not None and given["training"] is True
    if not elements or type(given["p"]) is not float or not 0 < given["p"] <= 1:
        return None
    return Step("dropout", node, source, given, source if given.get("inplace") else None)


def operands(node: Any, order: dict[Node, int], calls: dict[Any, bool] = ADDITIONS) -> Sequence[Node]:
    """The two operands of a sum, or of another of `calls`, of two tensors, the later one first; else none."""
    if not isinstance(node, Node) or node.target not in calls or node.kwargs:
        return ()
    tensors = [operand for operand in node.all_input_nodes if isinstance(value_of(operand), Tensor)]
    return sorted(tensors, key=order.__getitem__, reverse=True) if len(tensors) == len(node.args) == 2 else ()


def sum_of(node: Any, operand: Node) -> Step:
    """The step of a sum, one of whose operands is computed with it."""
    residual = node.args[1 - node.args.index(operand)]
    return Step("+", node, operand, {"residual": residual}, node.args[0] if ADDITIONS[node.target] else None)


def product_of(node: Any, operand: Node) -> Step:
    """The step of a product, one of whose factors is computed with it."""
    factor = node.args[1 - node.args.index(operand)]
    overwritten = node.args[0] if MULTIPLICATIONS[node.target] else None
    return Step("*", node, operand, {"factor": factor}, overwritten)


def cast(node: Any) -> Step | None:
    """The step of a method that gives a value another floating-point dtype and else leaves it, or None."""
    if not isinstance(node, Node) or node.op != "call_method" or node.target not in CASTS:
        return None
    source: Any = node.args[0]
    was, now = value_of(source), value_of(node)
    if not (isinstance(was, Tensor) and isinstance(now, Tensor)):
        return None
    alike = was.device == now.device and was.dtype != now.dtype and {*node.kwargs} <= {"dtype"}
    return Step("cast", node, source, {}) if alike and {was.dtype, now.dtype} <= {*FLOATING} else None


def is_identity(node: Node) -> bool:
    """Whether a method returns the tensor that it is called of, which has the dtype that it asks for."""
    if node.op != "call_method" or node.target not in CASTS or {*node.kwargs} - {"dtype"}:
        return False
    source, result = value_of(node.args[0]), value_of(node)
    if not (isinstance(source, Tensor) and isinstance(result, Tensor) and torch._C._has_storage(source)):
        return False
    alike = (source.dtype, source.device) == (result.dtype, result.device)
    return alike and source.untyped_storage()._cdata == result.untyped_storage()._cdata


def widened(node: Any) -> Node | None:
    """What a call that nothing but one other takes converts from 16 bits to float32, or None."""
    step = cast(node) if len(node.users) == 1 else None
    widens = step and (value_of(step.source).dtype.itemsize, value_of(node).dtype) == (2, torch.float32)
    return step.source if step and widens else None


def increased(node: Any) -> Node | None:
    """What a call adds 1 to, in memory of its own, or None."""
    if ADDITIONS.get(node.target) is not False or node.kwargs or len(node.args) != 2:
        return None
    for one, value in (node.args, node.args[::-1]):
        if type(one) in (int, float) and one == 1 and isinstance(value_of(value), Tensor):
            return value if isinstance(value, Node) else None
    return None

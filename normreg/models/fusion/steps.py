"""Reads the calls in the graph of a forward: each is a `Step` of a pattern, or nothing."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from normreg import nn
from normreg.models.fusion import blocks
from normreg.ops.activations import MODULES, activation_of

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
OVERWRITING = (F.relu_, torch.relu_, "relu_")
# activation, and {name: default} of the arguments besides the input, in order
FUNCTIONS: dict[Any, tuple[str | None, dict[str, Any]]] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), ("relu", {"inplace": False})),
    F.relu6: ("relu6", {"inplace": False}),
    F.leaky_relu: ("leaky_relu", {"negative_slope": 0.01, "inplace": False}),
    F.silu: ("silu", {"inplace": False}),
    F.gelu: ("gelu", {"approximate": "none"}),
    F.hardswish: ("hardswish", {"inplace": False}),
    F.dropout: (None, {"p": 0.5, "training": True, "inplace": False}),
}
METHODS = ("relu", "relu_")
# {function or method: whether it overwrites its first operand}
ADDITIONS: dict[Any, bool] = {
    operator.add: False,
    torch.add: False,
    operator.iadd: True,
    "add": False,
    "add_": True,
}


@dataclass(frozen=True)
class Step:
    """A call in the graph that can be a part of a pattern."""

    node: Any  # torch.fx.Node
    kind: str
    options: tuple[Any, ...] = ()
    overwrites: bool = False
    index: int = 0  # position of the input among the arguments; for a sum, of the operand that is fused

    @property
    def source(self) -> Any:
        return self.node.args[self.index]

    @property
    def residual(self) -> Any:
        return self.node.args[1 - self.index]


def _options(node: Node, defaults: dict[str, Any]) -> dict[str, Any] | None:
    """The values of the arguments behind the first, or None where they are not those of `defaults`."""
    if len(node.args) > len(defaults) + 1 or not node.kwargs.keys() <= defaults.keys():
        return None
    return defaults | dict(zip(defaults, node.args[1:])) | node.kwargs


class Reader:
    """Reads the calls in a graph of `block`; `becomes(module)` is the class that a module inside it gets."""

    def __init__(self, graph: Graph, block: torch.nn.Module, becomes: Callable[[Any], Any]) -> None:
        self.block, self.becomes = block, becomes
        self.order = {node: position for position, node in enumerate(graph.nodes)}

    def module(self, node: Node) -> Any:
        """The module that is called, or None."""
        return self.block.get_submodule(str(node.target)) if node.op == "call_module" else None

    def step(self, node: Any) -> Step | None:
        """The step that a call is, or None."""
        if not isinstance(node, Node) or not isinstance(next(iter(node.args), None), Node):
            return None
        if node.op == "call_function":
            return self.function_step(node)
        if len(node.args) > 1 or node.kwargs:
            return None
        if node.op == "call_module":
            return self.module_step(node, self.module(node))
        if node.op == "call_method" and node.target in METHODS:
            return Step(node, "act", ("relu", 0.01), node.target in OVERWRITING)
        return None

    def function_step(self, node: Node) -> Step | None:
        act, defaults = FUNCTIONS.get(node.target, (None, None))
        if defaults is None or (options := _options(node, defaults)) is None:
            return None
        overwrites = bool(options.get("inplace") or node.target in OVERWRITING)
        if node.target is F.dropout:
            return Step(node, "dropout", (options["p"], options["training"]), overwrites)
        act = "gelu_tanh" if options.get("approximate") == "tanh" else act
        return Step(node, "act", (act, options.get("negative_slope", 0.01)), overwrites)

    def module_step(self, node: Node, module: Any) -> Step | None:
        cls, inplace = self.becomes(module), getattr(module, "inplace", False)
        if cls in BATCH_NORMS:
            return Step(node, "batch norm")
        if blocks.is_norm(cls):
            return Step(node, "norm")
        if cls is nn.Dropout:
            return Step(node, "dropout", (f"{node.target}.p", f"{node.target}.training"), inplace)
        if cls in MODULES:
            return Step(node, "act", activation_of(module), inplace)
        return None

    def operands(self, node: Any) -> Sequence[Node]:
        """The two operands of a sum, the later one first; none of what is no sum of two values."""
        if node.op not in ("call_function", "call_method") or node.target not in ADDITIONS or node.kwargs:
            return ()
        if len(node.args) != 2 or not all(isinstance(value, Node) for value in node.args):
            return ()
        return (
            ()
            if node.args[0] is node.args[1]
            else sorted(node.args, key=self.order.__getitem__, reverse=True)
        )

    def sum_of(self, node: Any, operand: Node) -> Step:
        """The step of a sum whose operand is fused to it."""
        index = node.args.index(operand)
        return Step(node, "+", overwrites=ADDITIONS[node.target], index=index)

    def name(self, node: Any) -> str:
        """The name of a call in reports."""
        if node.op == "call_module":
            return node.target
        if node.target in ADDITIONS:
            return "+"
        return node.target if isinstance(node.target, str) else node.target.__name__

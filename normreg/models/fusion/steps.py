"""What a call in the graph of a forward is to the patterns: a `Step`, or nothing."""

import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from normreg import nn
from normreg.models.fusion import blocks
from normreg.ops.activations import MODULES, activation_of

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
OVERWRITING = (F.relu_, torch.relu_, "relu_")
# activation, and {name: default} of the arguments besides the input, in order
FUNCTIONS = dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), ("relu", {"inplace": False})) | {
    F.relu6: ("relu6", {"inplace": False}),
    F.leaky_relu: ("leaky_relu", {"negative_slope": 0.01, "inplace": False}),
    F.silu: ("silu", {"inplace": False}),
    F.gelu: ("gelu", {"approximate": "none"}),
    F.hardswish: ("hardswish", {"inplace": False}),
    F.dropout: (None, {"p": 0.5, "training": True, "inplace": False}),
}
METHODS = ("relu", "relu_")
# whether the first operand is overwritten
ADDITIONS = {operator.add: False, torch.add: False, operator.iadd: True, "add": False, "add_": True}


@dataclass(frozen=True)
class Step:
    """A call in the graph that can be a part of a pattern."""

    node: torch.fx.Node
    kind: str
    options: tuple = ()
    overwrites: bool = False
    index: int = 0  # of its input among the arguments; of a sum, that of the operand that is fused

    @property
    def source(self):
        return self.node.args[self.index]

    @property
    def residual(self):
        return self.node.args[1 - self.index]


def _options(node, defaults):
    """The values of the arguments behind the first, or None where they are others."""
    if len(node.args) > len(defaults) + 1 or not node.kwargs.keys() <= defaults.keys():
        return None
    return defaults | dict(zip(defaults, node.args[1:])) | node.kwargs


class Reader:
    """Reads the calls in a graph of `block`, whose modules become what `becomes` says."""

    def __init__(self, graph, block, becomes):
        self.block, self.becomes = block, becomes
        self.order = {node: position for position, node in enumerate(graph.nodes)}

    def module(self, node):
        return self.block.get_submodule(node.target) if node.op == "call_module" else None

    def step(self, node):
        """What a call is, or None."""
        if not isinstance(node, torch.fx.Node) or not isinstance(next(iter(node.args), None), torch.fx.Node):
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

    def function_step(self, node):
        act, defaults = FUNCTIONS.get(node.target, (None, None))
        if defaults is None or (options := _options(node, defaults)) is None:
            return None
        overwrites = options.get("inplace") or node.target in OVERWRITING
        if node.target is F.dropout:
            return Step(node, "dropout", (options["p"], options["training"]), overwrites)
        act = "gelu_tanh" if options.get("approximate") == "tanh" else act
        return Step(node, "act", (act, options.get("negative_slope", 0.01)), overwrites)

    def module_step(self, node, module):
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

    def operands(self, node):
        """Of a sum of two values, the later one first."""
        if node.op not in ("call_function", "call_method") or node.target not in ADDITIONS or node.kwargs:
            return ()
        if len(node.args) != 2 or not all(isinstance(value, torch.fx.Node) for value in node.args):
            return ()
        return () if node.args[0] is node.args[1] else sorted(node.args, key=self.order.get, reverse=True)

    def sum_of(self, node, operand):
        index = node.args.index(operand)
        return Step(node, "+", overwrites=ADDITIONS[node.target], index=index)

    def name(self, node):
        if node.op == "call_module":
            return node.target
        if node.target in ADDITIONS:
            return "+"
        return node.target if isinstance(node.target, str) else node.target.__name__

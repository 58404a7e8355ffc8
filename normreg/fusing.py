"""Where a forward applies a norm or dropout beside what one call computes with it, and that call instead.

batch norm -> activation             batch norm -> + -> activation
dropout -> + -> norm, + -> norm      activation -> dropout
"""

import operator
import re
import types
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from normreg import fused_blocks, nn, tracing
from normreg.fused_blocks import ACTIVATIONS, Code, Part, Plan

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)
# besides the input: {name: default}, in the order of the arguments
FUNCTIONS = dict.fromkeys(RELUS, ("relu", {"inplace": False})) | {
    F.relu6: ("relu6", {"inplace": False}),
    F.leaky_relu: ("leaky_relu", {"negative_slope": 0.01, "inplace": False}),
    F.silu: ("silu", {"inplace": False}),
    F.gelu: ("gelu", {"approximate": "none"}),
    F.hardswish: ("hardswish", {"inplace": False}),
}
METHODS = {"relu": "relu", "relu_": "relu"}
DROPOUT = {"p": 0.5, "training": True, "inplace": False}
# what they return is memory of its own
ALLOCATING = (
    torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.ConvTranspose1d,
    torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d, *BATCH_NORMS,
)  # fmt: skip
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


class Matcher:
    """Finds the patterns in one graph of a module, and replaces them."""

    def __init__(self, graph, block, becomes, functions):
        self.graph, self.block, self.becomes, self.functions = graph, block, becomes, functions
        self.order = {node: position for position, node in enumerate(graph.nodes)}
        self.taken, self.parts, self.matches = set(), [], []
        self.fused, self.refused = [], []

    def module(self, node):
        return self.block.get_submodule(node.target) if node.op == "call_module" else None

    def step(self, node):
        """What a call is, or None."""
        if (
            not isinstance(node, torch.fx.Node)
            or not node.args
            or not isinstance(node.args[0], torch.fx.Node)
        ):
            return None
        if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
            return self.module_step(node, self.module(node))
        if node.op == "call_function" and node.target in FUNCTIONS:
            name, defaults = FUNCTIONS[node.target]
            if (options := _options(node, defaults)) is not None:
                name = "gelu_tanh" if options.get("approximate") == "tanh" else name
                act = name, options.get("negative_slope", 0.01)
                overwrites = options.get("inplace", False) or node.target in (F.relu_, torch.relu_)
                return Step(node, "act", act, overwrites)
        if node.op == "call_method" and node.target in METHODS and len(node.args) == 1 and not node.kwargs:
            return Step(node, "act", (METHODS[node.target], 0.01), node.target.endswith("_"))
        if node.op == "call_function" and node.target is F.dropout:
            if (options := _options(node, DROPOUT)) is not None:
                values = options["p"], options["training"]
                return Step(node, "dropout", values, bool(options["inplace"]))
        return None

    def module_step(self, node, module):
        cls, inplace = self.becomes(module), getattr(module, "inplace", False)
        if cls in BATCH_NORMS:
            return Step(node, "batch norm")
        if _is_norm(cls):
            return Step(node, "norm")
        if cls is nn.Dropout:
            return Step(node, "dropout", (f"{node.target}.p", f"{node.target}.training"), inplace)
        if cls in ACTIVATIONS:
            return Step(node, "act", ACTIVATIONS[cls](module), inplace)
        return None

    def operands(self, node):
        """Of a sum of two values, the later one first."""
        if node.op not in ("call_function", "call_method") or node.target not in ADDITIONS or node.kwargs:
            return ()
        if len(node.args) != 2 or not all(isinstance(value, torch.fx.Node) for value in node.args):
            return ()
        return () if node.args[0] is node.args[1] else sorted(node.args, key=self.order.get, reverse=True)

    def name(self, node):
        if node.op == "call_module":
            return node.target
        if node.target in ADDITIONS:
            return "+"
        return node.target if isinstance(node.target, str) else node.target.__name__

    def find(self):
        for node in [*self.graph.nodes]:
            step = self.step(node)
            if step is None:
                continue
            if step.kind == "act":
                self.behind_batch_norm(step)
            elif step.kind == "norm":
                self.behind_sum(step)
            elif step.kind == "dropout":
                self.behind_activation(step)

    def behind_batch_norm(self, act):
        norm = self.step(act.source)
        if norm is not None and norm.kind == "batch norm":
            return self.match(norm, act)
        for operand in self.operands(act.source):
            norm = self.step(operand)
            if norm is not None and norm.kind == "batch norm":
                return self.match(norm, self.sum_of(act.source, operand), act)

    def behind_sum(self, norm):
        operands = self.operands(norm.source)
        if not operands:
            return
        first = next((s for s in map(self.step, operands) if s is not None and s.kind == "dropout"), None)
        if first is None:
            self.match(self.sum_of(norm.source, operands[0]), norm)
        else:
            self.match(first, self.sum_of(norm.source, first.node), norm)

    def behind_activation(self, dropout):
        act = self.step(dropout.source)
        if act is not None and act.kind == "act" and (self.functions or dropout.node.op == "call_module"):
            self.match(act, dropout)

    def sum_of(self, node, operand):
        index = node.args.index(operand)
        return Step(node, "+", overwrites=ADDITIONS[node.target] and index == 1, index=index)

    def match(self, *steps):
        """Notes that one call can take the place of these, or why not."""
        nodes = [step.node for step in steps]
        if self.taken & {*nodes}:
            return
        what = " -> ".join(map(self.name, nodes))
        if reason := self.objection(steps):
            self.refused.append((what, reason))
            return
        self.taken |= {*nodes}
        self.fused.append(what)
        for step in steps:
            if step.node.op == "call_module":
                kind = self.becomes(self.module(step.node))
                path, act = (
                    fused_blocks.path_of(step.node.target),
                    step.options if step.kind == "act" else None,
                )
                self.parts.append(Part(path, kind, act))
        self.matches.append((steps, self.is_prenorm(steps)))

    def objection(self, steps):
        """Why one call cannot take the place of these, or None."""
        for step in steps:
            module = self.module(step.node)
            if module is not None and (reason := fused_blocks.why_not_bypassed(module)):
                return f"{reason}: {step.node.target}"
        for step in steps[:-1]:
            if len(step.node.users) > 1 and not (step.kind == "+" and self.is_prenorm(steps)):
                return f"what {self.name(step.node)} returns is used elsewhere, too"
        for position, step in enumerate(steps):
            if step.overwrites and not self.overwrites_its_own(steps, position):
                return f"{self.name(step.node)} overwrites a value that may be used elsewhere"
        # the first steps are computed later than before, or the last one sooner
        first, *_, last = sorted(self.order[step.node] for step in steps)
        called = {self.module(step.node) for step in steps} - {None}
        for node in [*self.order][first:last]:
            if node not in (step.node for step in steps) and (reason := self.why_not_between(node, called)):
                return reason
        return None

    def overwrites_its_own(self, steps, position):
        """Whether what a step overwrites was made by a step before, or for the first one."""
        if steps[position].kind == "+" and steps[position].index == 1:
            return False  # the residual
        for step in reversed(steps[:position]):
            if step.kind != "dropout" and not step.overwrites:
                return True
        return self.is_new(steps[0].source)

    def is_new(self, node):
        """Whether a call made this tensor for its only user."""
        module = self.module(node)
        return (
            self.becomes(module) in ALLOCATING
            and fused_blocks.why_not_bypassed(module) is None
            and len(node.users) == 1
        )

    def is_prenorm(self, steps):
        return steps[-1].kind == "norm" and len(steps[-2].node.users) > 1

    def why_not_between(self, node, called):
        """Why the calls around this one cannot change places with it, or None."""
        if node.op == "call_module":
            inside = {*self.module(node).modules()}
            if inside & called:
                return f"{self.name(node)} is called in between, too"
            writes = any(_is_unknown(module) or getattr(module, "inplace", False) for module in inside)
        else:
            writes = node.op != "get_attr" and _may_write(node)
        return f"{self.name(node)}, in between, may overwrite what the others read" if writes else None

    def rewrite(self, steps, prenorm):
        last = steps[-1].node
        by_kind = {step.kind: step for step in steps}
        with self.graph.inserting_before(by_kind["+"].node if prenorm else last):
            source, residual = steps[0].source, by_kind["+"].residual if "+" in by_kind else None
            if "batch norm" in by_kind:
                norm = self.attribute(by_kind["batch norm"].node.target)
                new = self.call(fused_blocks.batch_norm_act, source, residual, norm, *by_kind["act"].options)
            elif "norm" in by_kind:
                dropout = self.values(by_kind["dropout"].options) if "dropout" in by_kind else (0.0, False)
                norm = self.attribute(last.target)
                new = self.call(fused_blocks.dropout_add_norm, source, residual, norm, *dropout, prenorm)
            else:
                dropout = self.values(by_kind["dropout"].options)
                new = self.call(fused_blocks.act_dropout, source, *by_kind["act"].options, *dropout)
            if prenorm:
                y, z = (self.call(operator.getitem, new, index) for index in range(2))
                by_kind["+"].node.replace_all_uses_with(z)
            else:
                y = new
        last.replace_all_uses_with(y)
        for step in reversed(steps):
            self.graph.erase_node(step.node)

    def call(self, function, *arguments):
        return self.graph.call_function(function, arguments)

    def attribute(self, path):
        return self.graph.create_node("get_attr", path)

    def values(self, options):
        """Numbers as they are; attributes of modules, given by their path, when they are read."""
        return tuple(self.attribute(value) if isinstance(value, str) else value for value in options)

    def code(self):
        """Of the graph with one call in the place of each pattern."""
        for steps, prenorm in self.matches:
            self.rewrite(steps, prenorm)
        code = self.graph.python_code("self")
        names = {
            name: value
            for name, value in code.globals.items()
            if not isinstance(value, types.ModuleType) and re.search(rf"\b{re.escape(name)}\b", code.src)
        }
        return Code(code.src, tuple(names.items()))


def _is_norm(cls):
    return cls.forward in fused_blocks.NORMS


def is_anchor(cls):
    """One is in every pattern of modules."""
    return cls in BATCH_NORMS or _is_norm(cls) or cls is nn.Dropout


def _is_unknown(module):
    return not type(module).__module__.startswith(("torch.nn.", "normreg.nn."))


def _may_write(node):
    """Whether a function or a method may write into its arguments, by torch's conventions of names."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
    home = getattr(node.target, "__module__", None) or "torch"
    unknown = home.split(".")[0] not in ("torch", "_operator", "math", "builtins")
    flags = any(value is True for value in (*node.args, *node.kwargs.values()))  # F.relu(x, True)
    return unknown or flags or name.endswith("_") or "out" in node.kwargs or node.target in tracing.IN_PLACE


def is_block(module):
    """Whether its forward is looked at: its own or nn.Sequential's, around other modules."""
    cls = type(module)
    theirs = cls.__module__.startswith("torch.") and cls is not torch.nn.Sequential
    return bool(module._modules) and not theirs and fused_blocks.has_forward(module)


def inside(module):
    """The modules that its forward calls itself: those in lists and dictionaries, too."""
    for child in module.children():
        yield child
        if not fused_blocks.has_forward(child):
            yield from inside(child)


def fuse(module, becomes, functions=True):
    """What `replace(fuse=True)` makes of one module: its new class or None, what is fused, (what, why not).

    becomes: of a module inside, the class that `replace` leaves it with.
    functions: whether an activation is fused with a dropout that is a function, not a module.

    Raises `tracing.Untraceable` where nothing is known of its forward.
    """
    if "forward" in vars(module):
        raise tracing.Untraceable("its forward is overridden on the instance")
    matchers = {}
    graphs, passed_on = tracing.trace(module)
    for training, graph in graphs.items():
        matchers[training] = Matcher(graph, module, becomes, functions)
        matchers[training].find()
    found, same = matchers[True], matchers[False]
    if not found.fused:
        return None, (), tuple(found.refused)
    if (found.fused, found.parts) != (same.fused, same.parts):
        raise tracing.Untraceable("its forward takes another way in training than in evaluation")
    plan = Plan(found.code(), same.code(), passed_on, tuple(found.parts), *fused_blocks.premises(module))
    return fused_blocks.derived(type(module), plan), tuple(found.fused), tuple(found.refused)

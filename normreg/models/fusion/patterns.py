"""Finds where a forward applies a norm or dropout beside what one call can compute with it, and rewrites it.

batch norm -> activation             batch norm -> + -> activation
dropout -> + -> norm, + -> norm      activation -> dropout, dropout -> +
"""

import operator
import pickle
import re
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from normreg import nn
from normreg.kernels.device.activations import LINES
from normreg.models.fusion import blocks, tracing
from normreg.models.fusion.blocks import Code, Part, Rewritten
from normreg.models.fusion.steps import BATCH_NORMS, Reader, Step
from normreg.models.hooks import why_not_bypassed

# layers whose result is memory of its own
CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
ALLOCATING = (torch.nn.Linear, *(getattr(torch.nn, name) for name in CONVOLUTIONS), *BATCH_NORMS)


class Matcher(Reader):
    """Finds the patterns in one graph of a module, and replaces them."""

    def __init__(
        self, graph: Graph, block: torch.nn.Module, becomes: Callable[[Any], Any], functions: bool
    ) -> None:
        super().__init__(graph, block, becomes)
        self.graph, self.functions = graph, functions
        self.taken: set[Any] = set()
        self.parts: list[Part] = []
        self.matches: list[tuple[tuple[Step, ...], bool]] = []
        self.fused: list[str] = []
        self.refused: list[tuple[str, str]] = []

    def find(self) -> None:
        """Notes the patterns of the graph, and why others are none."""
        steps = [step for step in map(self.step, self.graph.nodes) if step is not None]
        for step in steps:
            if step.kind == "act":
                self.behind_batch_norm(step)
            elif step.kind == "norm":
                self.behind_sum(step)
            elif step.kind == "dropout" and self.is_fusible(step):
                self.behind_activation(step)
        for step in steps:  # the sums that no norm is behind
            if step.kind == "dropout" and self.is_fusible(step) and step.node not in self.taken:
                self.before_sum(step)

    def is_fusible(self, dropout: Step) -> bool:
        return self.functions or dropout.node.op == "call_module"

    def behind_batch_norm(self, act: Step) -> None:
        norm = self.step(act.source)
        if norm is not None and norm.kind == "batch norm":
            self.match(norm, act)
            return
        for operand in self.operands(act.source):
            norm = self.step(operand)
            if norm is not None and norm.kind == "batch norm":
                self.match(norm, self.sum_of(act.source, operand), act)
                return

    def behind_sum(self, norm: Step) -> None:
        operands = self.operands(norm.source)
        if not operands:
            return
        first = next((s for s in map(self.step, operands) if s is not None and s.kind == "dropout"), None)
        if first is None:
            self.match(self.sum_of(norm.source, operands[0]), norm)
        else:
            self.match(first, self.sum_of(norm.source, first.node), norm)

    def behind_activation(self, dropout: Step) -> None:
        act = self.step(dropout.source)
        if act is not None and act.kind == "act":
            self.match(act, dropout)

    def before_sum(self, dropout: Step) -> None:
        user = next(iter(dropout.node.users), None)
        if user is not None and dropout.node in self.operands(user):
            self.match(dropout, self.sum_of(user, dropout.node))

    def match(self, *steps: Step) -> None:
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
        if any(step.overwrites for step in steps):
            self.parts += self.parts_of(steps[0].source)  # a hook on it may keep what is overwritten no more
        for step in steps:
            self.parts += self.parts_of(step.node, step.options if step.kind == "act" else None)
        self.matches.append((steps, self.is_prenorm(steps)))

    def parts_of(self, node: Any, act: tuple[Any, ...] | None = None) -> list[Part]:
        module = self.module(node)
        if module is None:
            return []
        return [Part(blocks.path_of(node.target), self.becomes(module), act)]

    def objection(self, steps: Sequence[Step]) -> str | None:
        """Why one call cannot take the place of these, or None."""
        for step in steps:
            module = self.module(step.node)
            if module is not None and (reason := why_not_bypassed(module)):
                return f"{reason}: {step.node.target}"
        for step in steps[:-1]:
            if len(step.node.users) > 1 and not (step.kind == "+" and self.is_prenorm(steps)):
                return f"what {self.name(step.node)} returns is used elsewhere, too"
        for position, step in enumerate(steps):
            if step.overwrites and not self.overwrites_its_own(steps, position):
                return f"{self.name(step.node)} overwrites a value that may be used elsewhere"
        own, calls = [step.node for step in steps], [*self.order]
        first, *_, last = sorted(self.order[node] for node in own)
        between = [node for node in calls[first:last] if node not in own]
        called = {self.module(node) for node in own} - {None}
        for node in between:  # the first steps are computed later than before, or the last one sooner
            if node.op == "call_module" and called & {*self.module(node).modules()}:
                return f"{self.name(node)} is called in between, too"
        kept = all(self.is_new(value) for value in newly_kept(steps))
        for node in between if kept else between + calls[last + 1 :]:
            if self.may_write(node):
                return f"{self.name(node)}, called after it, may overwrite what {self.name(own[0])} reads"
        return None

    def overwrites_its_own(self, steps: Sequence[Step], position: int) -> bool:
        """Whether what a step overwrites was made by a step before, or for the first one."""
        if steps[position].kind == "+" and steps[position].index == 1:
            return False  # the residual
        for step in reversed(steps[:position]):
            if step.kind != "dropout" and not step.overwrites:
                return True
        return self.is_new(steps[0].source)

    def is_new(self, node: Any) -> bool:
        """Whether a call made this tensor for its only user."""
        module = self.module(node)
        return (
            self.becomes(module) in ALLOCATING and why_not_bypassed(module) is None and len(node.users) == 1
        )

    def is_prenorm(self, steps: Sequence[Step]) -> bool:
        """Whether the sum in front of a norm is used elsewhere, too."""
        return steps[-1].kind == "norm" and len(steps[-2].node.users) > 1

    def may_write(self, node: Any) -> bool:
        """Whether a call may write into its arguments, by torch's conventions of names."""
        if node.op == "call_module":
            inside = self.module(node).modules()
            return any(_is_unknown(module) or getattr(module, "inplace", False) for module in inside)
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
        home = getattr(node.target, "__module__", None) or "torch"
        flags = any(value is True for value in (*node.args, *node.kwargs.values()))  # F.relu(x, True)
        return node.op in ("call_function", "call_method") and (
            home.split(".")[0] not in ("torch", "_operator", "math", "builtins")
            or node.target in tracing.IN_PLACE
            or name.endswith("_")
            or "out" in node.kwargs
            or flags
        )

    def rewrite(self, steps: Sequence[Step], prenorm: bool) -> None:
        """Puts the one call in the place of the steps."""
        last = steps[-1].node
        by_kind = {step.kind: step for step in steps}
        with self.graph.inserting_before(by_kind["+"].node if prenorm else last):
            source, residual = steps[0].source, by_kind["+"].residual if "+" in by_kind else None
            if "batch norm" in by_kind:
                norm = self.attribute(by_kind["batch norm"].node.target)
                new = self.call(blocks.batch_norm_act, source, residual, norm, *by_kind["act"].options)
            elif "norm" in by_kind:
                dropout = self.values(by_kind["dropout"].options) if "dropout" in by_kind else (0.0, False)
                norm = self.attribute(last.target)
                new = self.call(blocks.dropout_add_norm, source, residual, norm, *dropout, prenorm)
            else:
                dropout = self.values(by_kind["dropout"].options)
                if "act" in by_kind:
                    new = self.call(blocks.act_dropout, source, *by_kind["act"].options, *dropout)
                else:
                    new = self.call(blocks.dropout_add, source, residual, *dropout)
            if prenorm:
                y, z = (self.call(operator.getitem, new, index) for index in range(2))
                by_kind["+"].node.replace_all_uses_with(z)
            else:
                y = new
        last.replace_all_uses_with(y)
        for step in reversed(steps):
            self.graph.erase_node(step.node)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Node:
        return self.graph.call_function(function, arguments)

    def attribute(self, path: str) -> Node:
        return self.graph.create_node("get_attr", path)

    def values(self, options: tuple[Any, ...]) -> tuple[Any, ...]:
        """Numbers as they are; attributes of modules, given by their path, when they are read."""
        return tuple(self.attribute(value) if isinstance(value, str) else value for value in options)

    def code(self) -> Code:
        """The code of the graph with one call in the place of each pattern."""
        for steps, prenorm in self.matches:
            self.rewrite(steps, prenorm)
        python = self.graph.python_code("self")
        names = {
            name: value
            for name, value in python.globals.items()
            if not isinstance(value, types.ModuleType) and re.search(rf"\b{re.escape(name)}\b", python.src)
        }
        code = Code(python.src, tuple(names.items()))
        try:
            pickle.dumps(code)
        except Exception as error:
            raise tracing.Untraceable(f"its forward calls what cannot be pickled: {error}") from error
        return code


def is_anchor(cls: Any) -> bool:
    """Whether layers of this class can be the norm or dropout without which no modules are a pattern."""
    return cls in BATCH_NORMS or blocks.is_norm(cls) or cls is nn.Dropout


def _is_unknown(module: torch.nn.Module) -> bool:
    return not type(module).__module__.startswith(("torch.nn.", "normreg.nn."))


def newly_kept(steps: Sequence[Step]) -> list[Any]:
    """The values that the backward of the one call needs, and that of the several did not."""
    kinds = {step.kind: step for step in steps}
    if {"act", "dropout"} <= kinds.keys():
        return [steps[0].source]
    if {"act", "+"} <= kinds.keys() and kinds["act"].options[0] not in LINES:
        return [kinds["+"].residual]
    return []


def is_block(module: torch.nn.Module) -> bool:
    """Whether the module has a forward around other modules."""
    return bool(module._modules) and blocks.has_forward(module)


def inside(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The modules that its forward calls itself: those in lists and dictionaries, too."""
    for child in module.children():
        yield child
        if not blocks.has_forward(child):
            yield from inside(child)


def fuse(
    module: Any, becomes: Callable[[Any], Any], functions: bool = True
) -> tuple[type | None, tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The module's new class or None, the patterns fused in it, and (pattern, why not) of the others.

    becomes: takes a module inside, and returns the class that `replace` leaves it with.
    functions: whether dropout that is a function, not a module, is fused with an activation or a sum.

    Raises `tracing.Untraceable` where nothing is known of its forward.
    """
    home = type(module).__module__
    if home.startswith("torch.distributed.fsdp"):
        raise tracing.Untraceable("fully_shard derived its class: fuse before")
    if home.startswith("torch.") and type(module) is not torch.nn.Sequential:
        raise tracing.Untraceable("a forward of torch's own is not rewritten")
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
        raise tracing.Untraceable("its forward takes another way in evaluation or under autocast")
    cls: Any = type(module)
    rewritten = Rewritten(found.code(), same.code(), passed_on, tuple(found.parts), *blocks.premises(module))
    return blocks.derived(cls, rewritten), tuple(found.fused), tuple(found.refused)

"""Finds the calls in a graph that one operator of normreg computes, and puts it in their place.

batch norm [-> +] -> activation             [dropout ->] + -> layer or RMS norm
[linear's bias ->] activation -> dropout    dropout -> +
group norm -> activation                    [[gate * ->] + ->] layer or RMS norm -> * (1 + scale) [-> + shift]
"""

import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node, map_arg
from torch.utils._pytree import tree_leaves

from normreg.models.fusion import matches, modulation, steps
from normreg.models.fusion.matches import TO_BE_DRAWN, Match, shape_of, why_no_kernel
from normreg.models.fusion.memory import Memory
from normreg.models.fusion.modulation import Modulated
from normreg.models.fusion.names import name_of
from normreg.models.fusion.steps import Step, value_of
from normreg.ops.seed import draw_seed

KEEPING = (F.linear, torch.conv1d, torch.conv2d, torch.conv3d, torch.matmul, operator.matmul)
UNUSED = (operator.getitem, getattr, torch._C._are_functorch_transforms_active)


class Finder:
    """Finds the patterns of a graph, and why others are none."""

    def __init__(self, graph: Graph, patterns: Collection[str], is_chosen: Callable[[Match], bool]) -> None:
        for node in reversed(graph.nodes):  # results that nobody takes, and what our own dispatch asked
            idle = steps.is_identity(node)
            if idle:
                node.replace_all_uses_with(node.args[0])
            if not node.users and (idle or node.target in UNUSED):
                graph.erase_node(node)
        self.patterns, self.is_chosen, self.memory = patterns, is_chosen, Memory(graph)
        self.taken: set[Node] = set()
        self.found: list[Match] = []
        self.refused: list[tuple[Match, str]] = []
        found = [step for step in map(steps.step_of, graph.nodes) if step is not None]
        behind: dict[str, Callable[[Step], Iterator[Match]]] = {
            "act": self.behind_channels,
            "norm": self.around_norm,
            "modulated norm": self.modulated,
            "dropout": self.behind_activation,
        }
        for step in found:
            if find := behind.get(step.kind):
                self.match([*find(step)])
        for step in found:  # the sums that no norm is behind
            if step.kind == "dropout":
                self.match([*self.before_sum(step)])

    def terms(self, node: Any) -> Sequence[Node]:
        """The terms of a sum, the later one first; none of what is none."""
        return steps.operands(node, self.memory.order)

    def behind_channels(self, act: Step) -> Iterator[Match]:
        if norm := steps.step_of(act.source, "group norm"):
            yield matches.group_norm_act(norm, act)
        if norm := steps.step_of(act.source, "batch norm"):
            yield matches.batch_norm_act(norm, act)
        for term in self.terms(act.source):
            if norm := steps.step_of(term, "batch norm"):
                yield matches.batch_norm_act(norm, act, steps.sum_of(act.source, term))

    def around_norm(self, norm: Step) -> Iterator[Match]:
        for modulated in modulation.behind(norm, self.memory.order):
            yield from self.behind_gate(modulated)
            yield matches.ada_norm(modulated)
        yield from self.behind_sum(norm)

    def modulated(self, call: Step) -> Iterator[Match]:
        if modulated := modulation.of_operator(call):
            yield from self.behind_gate(modulated)

    def behind_gate(self, modulated: Modulated) -> Iterator[Match]:
        rounding = steps.cast(modulated.source)
        total: Any = rounding.source if rounding else modulated.source
        terms = self.terms(total)
        for term in terms:
            for gate in modulation.gated(term, self.memory.order):
                if shape_of(gate.source) == shape_of(total):
                    yield matches.ada_norm(modulated, steps.sum_of(total, term), gate, rounding)
        if terms and not any(steps.step_of(term, "dropout") for term in terms):
            yield matches.ada_norm(modulated, steps.sum_of(total, terms[0]), rounding=rounding)

    def behind_sum(self, norm: Step) -> Iterator[Match]:
        terms: Any = self.terms(norm.source)
        for term in terms:
            plus, inner = steps.sum_of(norm.source, term), self.terms(term)
            if dropout := steps.step_of(term, "dropout"):
                yield matches.dropout_add_norm(norm, plus, dropout)
            shapes = {shape_of(node) for node in (*inner, term, norm.source)}
            if inner and len(shapes) == 1 and shape_of(plus.given["residual"]) not in shapes:
                yield matches.dropout_add_norm(norm, plus, steps.sum_of(term, term.args[0]))
        if terms:
            yield matches.dropout_add_norm(norm, steps.sum_of(norm.source, terms[0]))

    def behind_activation(self, dropout: Step) -> Iterator[Match]:
        act = steps.step_of(dropout.source, "act")
        if act is None:
            return
        linear: Any = act.source
        if linear.target is F.linear and len(linear.args) == 3 and isinstance(linear.args[2], Node):
            step = Step("linear", linear, linear.args[0], dict(bias=linear.args[2]))
            yield matches.bias_act_dropout(act, dropout, step)
        yield matches.bias_act_dropout(act, dropout)

    def before_sum(self, dropout: Step) -> Iterator[Match]:
        for user in dropout.node.users:
            if dropout.node in self.terms(user):
                yield matches.dropout_add(dropout, steps.sum_of(user, dropout.node))

    def match(self, candidates: Sequence[Match]) -> None:
        """Notes the first of these that is right, or why the first one is not."""
        reasons = []
        for match in candidates:
            wanted = match.function in self.patterns and self.is_chosen(match)
            if wanted and self.taken.isdisjoint(match.nodes):
                reason = self.objection(match)
                if reason is None:
                    self.taken |= {*match.nodes}
                    self.found.append(match)
                    return
                reasons.append((match, reason))
        self.refused += reasons[:1]

    def objection(self, match: Match) -> str | None:
        """Why one operator cannot take the place of these, or None."""
        memory, nodes, last = self.memory, [*match.nodes, *match.beside], match.nodes[-1]
        first = min(nodes)
        for step, node in zip(match.steps, match.named):
            if node is not match.named[-1] and len(step.node.users) > 1 and step.node not in match.results:
                return f"what {name_of(node)} returns is used elsewhere, too"
            if step.overwritten is not None and not memory.is_own(step.overwritten, step.node):
                return f"{name_of(node)} overwrites a value that may be used elsewhere"
        if memory.mode[first] != memory.mode[last]:
            return "a part is computed in another mode, as of autocast or gradients"
        if writer := memory.writer([match.given, match.first, nodes], first, last, nodes):
            return f"{name_of(writer)}, called after it, may overwrite what {name_of(first)} reads"
        buffers = memory.of([match.given[name] for name in steps.written_by(match.target)])
        for node, position in memory.order.items():
            if memory.order[first] < position < memory.order[last] and node not in nodes:
                if buffers & memory.of(node.all_input_nodes):
                    return f"{name_of(node)} is called in between, too"
        reads = [x for x in tree_leaves([match.given, match.first]) if isinstance(x, Node)]
        for node in match.nodes[bool(match.first) :]:  # that call takes the place of the first one
            if node in reads:
                return f"what {name_of(node)} returns is used elsewhere, too"
        if any(match.place <= x for x in reads):
            return (
                f"{name_of(match.place)} uses the sum before what {name_of(match.named[-1])} reads is there"
            )
        return self.why_not_kept(match) or why_no_kernel(match) or self.why_different(match)

    def why_not_kept(self, match: Match) -> str | None:
        """Why the backward cannot count on a value that it did not need before, or None."""
        if writer := self.memory.writer(match.keeps, match.nodes[-1], None, match.nodes):
            return f"{name_of(writer)}, called after it, may overwrite what the backward would need"
        for kept in match.keeps:
            if not self.memory.is_new(kept) and not any(_is_kept(kept, user) for user in kept.users):
                return "the backward would need a value that the caller may overwrite"
        return None

    def why_different(self, match: Match) -> str | None:
        """What of the results would not be as it was, by the operator's rule for tensors without values."""
        example = value_of(match.results[0])
        with example.fake_mode, torch.no_grad():
            seed = torch.zeros((), dtype=torch.int64, device=example.device)
            values = map_arg(match.arguments, value_of)
            results = match.target(*[seed if value is TO_BE_DRAWN else value for value in values])
        for node, result in zip(match.results, results if isinstance(results, tuple | list) else [results]):
            was = value_of(node)
            for what in ("dtype", "shape", "stride"):  # in words, because sizes may be symbols
                now, before = (
                    str(x.stride() if what == "stride" else getattr(x, what)) for x in (result, was)
                )
                if now != before and not (what == "stride" and self.memory.lies_anyhow(node)):
                    return f"the result would have {what} {now}, not {before}"
        return None


def _is_kept(value: Node, user: Node) -> bool:
    """Whether a call's backward needs a value of these: a factor, where the other one is trained."""
    factors = user.args[:2] if user.target in KEEPING else ()
    others = [factor for factor in factors if factor is not value]
    if len(others) != 1 or not value_of(user).requires_grad or not value_of(others[0]).requires_grad:
        return False
    return value_of(user).dtype == value_of(value).dtype  # autocast's copy is another


def rewrite(graph: Graph, matches: Iterable[Match]) -> None:
    """Puts the operators into the places of the calls."""
    now: dict[Node, Node] = {}  # what stands for the results of operators before
    for match in matches:
        place, first = match.place, match.steps[0].node
        with graph.inserting_before(place):
            if match.first:
                function, *inputs = map_arg(match.first, lambda node: now.get(node, node))
                now[first] = graph.call_function(function, tuple(inputs))
                now[first].meta = {**first.meta}
            given: Any = {**map_arg(match.given, lambda node: now.get(node, node))}
            if given.get("seed") is TO_BE_DRAWN:
                device = value_of(match.results[0]).device
                given["seed"] = graph.call_function(draw_seed, (), {"device": device})
            if isinstance(given.get("cols"), torch.SymInt):
                given["cols"] = graph.call_method("numel", (given["x"],))
            call = graph.call_function(match.target, match._replace(given=given).arguments)
            call.meta = {
                k: v for k, v in match.named[-1].meta.items() if k in ("nn_module_stack", "stack_trace")
            }
            single = len(match.target._schema.returns) == 1
            for index, result in enumerate(match.results):
                new = now[result] = call if single else graph.call_function(operator.getitem, (call, index))
                new.meta = {**result.meta}
                result.replace_all_uses_with(new)
        for node in (*reversed(match.nodes), *match.beside):
            if node not in match.beside or not node.users:
                graph.erase_node(node)

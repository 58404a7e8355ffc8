"""Says which values of a graph share memory, which calls may overwrite it, and in which mode a call runs."""

import operator
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from normreg.models.fusion.steps import DROPOUT, NORMREG, arguments, value_of, written_by

TORCH_LIKE = ("torch", "_operator", "math", "builtins")  # whose functions keep torch's conventions of names
IN_PLACE = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
WRITING = {*(f"i{name}" for name in IN_PLACE), "setitem", "delitem"}
GIVEN = ("placeholder", "get_attr")
DENSE = (F.linear, NORMREG.layer_norm.default, NORMREG.rms_norm.default)  # whatever their input's strides are
AS_STRIDED = (operator.add, DROPOUT, F.dropout)  # whose result has their input's strides


def _storages(value: Any) -> frozenset[int]:
    """The memory of the tensors in a value."""
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return frozenset(t.untyped_storage()._cdata if torch._C._has_storage(t) else id(t) for t in tensors)


def _home(target: Any) -> str:
    return (getattr(target, "__module__", None) or "torch").split(".")[0]


def _written(node: Node) -> Iterable[Any]:
    """The arguments that a call may overwrite, by an operator's schema or by torch's conventions of names."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        given: Any = arguments(node)
        return [given.get(name) for name in written_by(target)]
    if isinstance(target, torch._ops.OpOverloadPacket):
        schemas = [getattr(target, overload)._schema for overload in target.overloads()]
        return node.all_input_nodes if any(schema.is_mutable for schema in schemas) else ()
    name = target if isinstance(target, str) else getattr(target, "__name__", "_")
    named = [value for key, value in node.kwargs.items() if key != "training"]
    flags = [*node.args[3 if target is F.dropout else 0 :], *named]
    overwrites = (
        (node.op == "call_function" and _home(target) not in TORCH_LIKE)
        or node.op == "call_module"
        or isinstance(target, torch._ops.HigherOrderOperator)
        or name.strip("_") in WRITING
        or (name.endswith("_") and not name.endswith("__"))
        or any(value is True for value in flags)  # F.relu(x, True)
        or "out" in node.kwargs
    )
    return node.all_input_nodes if overwrites else ()


class Memory:
    """What the calls of a graph read, write, and share."""

    def __init__(self, graph: Graph) -> None:
        self.order = {node: position for position, node in enumerate(graph.nodes)}
        self.storages = {node: _storages(value_of(node)) for node in graph.nodes}
        self.names: dict[int, list[Node]] = defaultdict(list)  # the values of a storage, in order
        self.writers: dict[int, list[Node]] = defaultdict(list)
        self.mode: dict[Node, int] = {}  # how many calls have changed a mode up to this one
        modes = 0
        for node in graph.nodes:
            for storage in self.storages[node]:
                self.names[storage].append(node)
            if node.op not in (*GIVEN, "output"):
                modes += self._changes_mode(node)
                for storage in self.of(_written(node)):
                    self.writers[storage].append(node)
            self.mode[node] = modes

    def of(self, values: Any) -> set[int]:
        """The memory of all nodes in `values`."""
        nodes = [node for node in tree_leaves(values) if isinstance(node, Node)]
        return {storage for node in nodes for storage in self.storages[node]}

    def _changes_mode(self, node: Node) -> bool:
        """Whether a call neither takes nor makes tensors or sizes, as what switches autocast."""
        size = isinstance(value_of(node), int | float | torch.SymInt | torch.SymFloat | torch.SymBool)
        tensors = self.storages[node] or self.of(node.args)
        return (
            node.op == "call_function" and _home(node.target) not in TORCH_LIKE[1:] and not (tensors or size)
        )

    def writer(self, values: Any, after: Node, before: Node | None, but: Iterable[Node]) -> Node | None:
        """A call between two, or behind the first, that may overwrite what `values` name."""
        start, end = self.order[after], len(self.order) if before is None else self.order[before]
        writers = [node for storage in self.of(values) for node in self.writers[storage]]
        return next((n for n in writers if start < self.order[n] < end and n not in but), None)

    def is_own(self, value: Node, step: Node) -> bool:
        """Whether only `step` sees a value's memory, and what comes of it: not the caller, no other call."""
        names = [node for storage in self.storages[value] for node in self.names[storage]]
        earlier = {node for node in names if self.order[node] < self.order[step]}
        return all(node.op not in GIVEN and {*node.users} <= {*earlier, step} for node in earlier)

    def is_new(self, value: Node) -> bool:
        """Whether the graph makes a value's memory, and does not hand it to the caller."""
        names = [node for storage in self.storages[value] for node in self.names[storage]]
        return not any(node.op in GIVEN or any(user.op == "output" for user in node.users) for node in names)

    def lies_anyhow(self, value: Node) -> bool:
        """Whether nothing depends on a value's strides: calls read it that make a dense result of any."""
        return all(
            user.target in DENSE or (user.target in AS_STRIDED and self.lies_anyhow(user))
            for user in value.users
        )

"""Names the calls of a graph as reports do: those of layers by the layer, others by the function."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch.fx import Node

from normreg.models.fusion.steps import ADDITIONS, MULTIPLICATIONS
from normreg.models.naming import ROOT
from normreg.models.registry import Foreign

Path = tuple[str, ...]


def modules_of(node: Node) -> dict[Path, int]:
    """{path: id} of the modules that run at a call; Dynamo names them as L['self'].encoder.0."""
    stack = node.meta.get("nn_module_stack") or {}
    return {_path(source): int(key.partition("@")[0]) for key, (source, _) in stack.items()}


def _path(source: str) -> Path:
    return tuple(part for part in re.split(r"\W+|_modules|__dict__", source)[2:] if part)


def _call(node: Node) -> tuple[Path, str, bool]:
    """The path of the module whose forward has a call, the call's name, and whether that is a layer's."""
    stack = [(_path(source), cls) for source, cls in (node.meta.get("nn_module_stack") or {}).values()]
    path, cls = stack[-1] if stack else ((), object)
    layer = cls.__module__.startswith(("torch.nn.", "normreg.nn.")) or issubclass(cls, Foreign)
    if path and layer and "transformer" not in cls.__module__:  # whose forwards call several
        return path[:-1], path[-1], True
    target: Any = "+" if node.target in ADDITIONS else node.target
    if MULTIPLICATIONS.get(target) is False:  # an overwriting one is named as it is written
        target = "*"
    return path, target if isinstance(target, str) else target.__name__, False


def name_of(node: Node) -> str:
    """A call's name."""
    _, name, _ = _call(node)
    return name


class Pattern(NamedTuple):
    """Calls in a model, and why one operator does not compute them, or None where it does."""

    within: Path
    module: int | None  # id of the module in which all of them stand
    what: str
    reason: str | None

    @classmethod
    def of(cls, nodes: Iterable[Node], reason: str | None) -> "Pattern":
        """The calls in words."""
        modules, calls = modules_of(next(iter(nodes))), [*map(_call, nodes)]
        shortest, longest = min(path for path, _, _ in calls), max(path for path, _, _ in calls)
        same = (a == b for a, b in zip(shortest, longest))  # what these two share, all share
        within = shortest[: [*same, False].index(False)]
        what = [".".join([*path[len(within) :] * layer, name]) for path, name, layer in calls]
        return cls(within, modules.get(within), " -> ".join(what), reason)

    def name(self, names: Mapping[int, str], prefix: str) -> str:
        """The module's name in a model of {id: name}; prefix: the name of the module that was called."""
        found = names.get(self.module) if self.module is not None else None
        return found or ".".join([*filter(None, [prefix]), *self.within]) or ROOT

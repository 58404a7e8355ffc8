"""torch.compile's backend: replaces a graph's patterns, and runs it as eager mode does or hands it on."""

import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch._guards import TracingContext
from torch.fx import GraphModule

from normreg.models.fusion.matches import PATTERNS, Match
from normreg.models.fusion.names import Pattern, modules_of
from normreg.models.fusion.patterns import Finder, rewrite
from normreg.models.fusion.running import as_eager

Method: TypeAlias = tuple[type, str, types.FunctionType]  # of a class, by a name
LISTENERS: list[Callable[[list[Pattern]], None]] = []  # who hears of every graph that runs
_BACKENDS: weakref.WeakValueDictionary[Any, "Backend"] = weakref.WeakValueDictionary()


class Backend:
    """A backend of torch.compile."""

    def __init__(
        self, then: Any, patterns: tuple[str, ...], functions: bool, left: frozenset[int], methods: Any
    ) -> None:
        self.then, self.patterns, self.functions, self.left = then, patterns, functions, left
        self.classes: set[type] = set()  # of the modules that are called through it
        self.traced: tuple[Method, ...] = ()  # of which graphs were made; Dynamo takes them for unchangeable

    def __call__(self, graph_module: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        self.watch(graph_module)
        found = self.fuse(graph_module)
        if self.then is None:
            run: Any = as_eager(graph_module).forward
        else:
            run = torch._dynamo.lookup_backend(self.then)(graph_module, example_inputs)

        def call(*inputs: Any) -> Any:
            for told in LISTENERS:
                told(found)
            return run(*inputs)

        return call

    def fuse(self, graph_module: GraphModule) -> list[Pattern]:
        """Replaces the patterns of all graphs in place, and says which there are."""
        found = []
        for body in graph_module.modules():
            if isinstance(body, GraphModule):
                finder = Finder(body.graph, self.patterns, self.is_chosen)
                found += [Pattern.of(match.named, None) for match in finder.found]
                found += [Pattern.of(match.named, reason) for match, reason in finder.refused]
                rewrite(body.graph, finder.found)
                body.recompile()
        reason: Any = getattr(graph_module, "compile_subgraph_reason", None)
        if reason is not None and reason.graph_break:
            line = reason.user_stack[-1]
            where = f"graph break at {line.filename}, line {line.lineno}, in {line.name}"
            found.append(Pattern((), None, where, reason.reason.splitlines()[0]))
        return found

    def is_chosen(self, match: Match) -> bool:
        """Whether the pattern has a layer, or one of functions alone may be fused where it stands."""
        layers = any(step.call is not None or "seed" in step.given for step in match.steps)
        return layers or (
            self.functions and self.left.isdisjoint([*modules_of(match.named[0]).values()][-1:])
        )

    def watch(self, graph_module: GraphModule) -> None:
        """Notes the methods that the graph was made of."""
        codes = set(TracingContext.get_traced_code() or ())
        for node in graph_module.graph.nodes:
            self.classes |= {cls for _, cls in (node.meta.get("nn_module_stack") or {}).values()}
        found = {
            (cls, name, getattr(cls, name))
            for cls in self.classes
            for base in cls.__mro__[: cls.__mro__.index(torch.nn.Module)]
            for name, method in vars(base).items()
            if isinstance(method, types.FunctionType) and method.__code__ in codes
        }
        self.traced = tuple({*self.traced, *found})

    def is_stale(self) -> bool:
        """Whether a class has another method than when a graph was made of it."""
        return any(getattr(cls, name, None) is not method for cls, name, method in self.traced)

    def renewed(self) -> "Backend":
        """The backend of graphs with the methods of now."""
        methods = tuple(getattr(cls, name, None) for cls, name, _ in self.traced)
        return backend_of(self.then, self.patterns, self.functions, self.left, methods)


def backend_of(
    then: Any, patterns: tuple[str, ...], functions: bool, left: frozenset[int], methods: tuple[Any, ...] = ()
) -> Backend:
    """The one backend of these settings, so that modules of one class share their graphs.

    then: torch.compile's backend that is handed the graphs, None for eager mode.
    functions: whether patterns without a layer are fused, but for modules whose ids are in `left`.
    """
    key = then, patterns, functions, left, methods
    backend = _BACKENDS.get(key)
    if backend is None:
        backend = _BACKENDS[key] = Backend(*key)
    return backend


def checked(patterns: str | Sequence[str] | None, for_all: str) -> tuple[str, ...]:
    """The names of patterns, all for None; raises ValueError for an unknown one.

    for_all: what the caller is to give for all of them, for the error.
    """
    names = PATTERNS if patterns is None else (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for name in names:
        if name not in PATTERNS:
            raise ValueError(
                f"expected names of what can be fused, {', '.join(PATTERNS)}, got {name!r}: give some of "
                f"these, or {for_all}"
            )
    return names


def fused(backend: Any = None, patterns: str | Sequence[str] | None = None) -> Backend:
    """A backend for `torch.compile` that fuses what stands beside normreg's layers.

    In the graphs that torch.compile traces, one operator takes the place of an activation behind a GroupNorm,
    a BatchNorm or its sum with a residual, of dropout and a sum, or the sum, in front of a LayerNorm or
    RMSNorm, of dropout behind an activation (and a linear layer's bias), of dropout in front of a sum, and of
    a LayerNorm or RMSNorm, the scale and shift of a condition behind it and the gated sum in front of it. A
    value that is used elsewhere, or overwritten, is not fused away.

    Args:
        backend: another backend of torch.compile, by name or as a function, that is handed the fused graphs:
            `fused("inductor")`. None: they run as eager mode does, without a compiler.
        patterns: names of what to fuse, None for all: "ada_layer_norm", "ada_rms_norm", "batch_norm_act",
            "bias_act_dropout", "dropout_add", "dropout_add_layer_norm", "dropout_add_rms_norm",
            "group_norm_act", the functions of `normreg.functional` that compute the same.

    Raises ValueError for an unknown pattern or backend, TypeError for a backend of another type.

    Equivalent::

        model = torch.compile(model, backend="normreg")     # where normreg is installed: normreg.fused()
    """
    _check_backend(backend)
    return backend_of(backend, checked(patterns, "leave patterns out for all"), True, frozenset())


def _check_backend(backend: Any) -> None:
    if isinstance(backend, str):
        try:
            torch._dynamo.lookup_backend(backend)
        except torch._dynamo.exc.InvalidBackend:
            raise ValueError(
                f"expected the name of a backend of torch.compile, got {backend!r}: torch.compiler."
                f"list_backends() has them, or give None for eager mode"
            ) from None
    elif backend is not None and not callable(backend):
        raise TypeError(
            f"expected a backend's name, a function (graph_module, example_inputs) or None, got {backend!r}: "
            f"pass such as 'inductor'"
        )


def eager(graph_module: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
    """What torch.compile calls for the backend "normreg"."""
    return fused()(graph_module, example_inputs)

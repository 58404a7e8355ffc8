"""Traces a module's forward as torch.fx graphs, in training and in evaluation: modules inside are calls.

Nothing is computed. Where a graph could be wrong for some later call, there is none, and a reason.
"""

import contextlib
import inspect
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import fx

from normreg.models.fusion import Untraceable
from normreg.models.fusion.unchanged import unchanged

MODES = (True, False)  # training, evaluation
DEVICES = ("cpu", "cuda")  # whose autocast is asked about


# modules that ask for the class of a proxy for their own purposes
ASKING = ("torch.fx", "torch._", "torch.overrides", "torch.utils._pytree", "torch.nn.")


class _Proxy(fx.Proxy):
    tracer: "_Tracer"

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """torch.Tensor for an input without a default, because every call is held to that."""
        if sys._getframe(1).f_globals.get("__name__", "").startswith(ASKING):
            return _Proxy
        if self._is_tensor:
            return torch.Tensor
        raise Untraceable("its forward asks for the type of a value in between")

    @property
    def _is_tensor(self) -> bool:
        return self.node.op == "placeholder" and self.node.target in self.tracer.signature.names

    def __getattr__(self, name: str) -> Any:
        """Tensors' attributes alone, because hasattr would always hear yes."""
        if hasattr(torch.Tensor, name):
            return super().__getattr__(name)
        if self._is_tensor:
            raise AttributeError(name)
        raise Untraceable(f"its forward asks a value in between for {name!r}, which tensors have not")

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises Untraceable, because the graph would not have the attribute."""
        if name not in ("tracer", "node"):
            raise Untraceable(f"its forward sets {name!r} of a value")
        super().__setattr__(name, value)


def _record(name: str) -> Callable[..., Any]:
    def method(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return method


# torch.fx records `x += y` as `x = x + y`, which other names of x would not see
_IN_PLACE = (
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "imatmul",
    "iand",
    "ior",
    "ixor",
)
for _name in _IN_PLACE:
    setattr(_Proxy, f"__{_name}__", _record(_name))
IN_PLACE = {operator.setitem, operator.delitem, *(getattr(operator, name) for name in _IN_PLACE)}


class _Tracer(fx.Tracer):
    """Every module inside is called, not looked into."""

    proxy_buffer_attributes = True

    def __init__(self, signature: "Signature", options: Iterable[str]) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]  # wrapping `math` takes a third of the time
        self.signature, self.options, self.modes = signature, options, _modes()

    def is_leaf_module(self, module: torch.nn.Module, name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> _Proxy:
        return _Proxy(node, self)

    def create_args_for_root(self, forward: Any, is_module: bool, concrete_args: Any = None) -> Any:
        def value(name: str) -> Any:
            return self.create_proxy("placeholder", name, (), {})

        def with_options(root: Any, *tensors: Any) -> Any:
            return forward(root, *tensors, **options)

        tensors = [value(name) for name in self.signature.names]
        options = {name: value(name) for name in self.options}
        return with_options, [self.root, *tensors]

    def create_node(self, *arguments: Any, **options: Any) -> fx.Node:
        if _modes() != self.modes:
            raise Untraceable("its forward computes a part in another grad or autocast mode")
        node = super().create_node(*arguments, **options)
        node.type = None  # an annotation, which the code would need by name
        return node

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, dict | list) and type(a) not in (dict, list):
            raise Untraceable(f"its forward makes a {type(a).__name__}")
        return super().create_arg(a)


def _modes() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), *(torch.is_autocast_enabled(device) for device in DEVICES)


class Signature(NamedTuple):
    """The arguments of a forward."""

    names: tuple[str, ...]  # of the arguments without a default
    defaults: dict[str, Any]  # name: default
    positional: tuple[str, ...]  # names of those that can be passed by position


def signature(cls: Any) -> Signature:
    """The signature of a class's forward, without *args and **options: calls with such are not traced."""
    parameters = [*inspect.signature(cls.forward).parameters.values()][1:]
    parameters = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for p in parameters:
        if p.kind is p.POSITIONAL_ONLY or (p.kind is p.KEYWORD_ONLY and p.default is p.empty):
            raise Untraceable(f"its forward takes {p.name!r} in one way only, by position or by name")
    return Signature(
        tuple(p.name for p in parameters if p.default is p.empty),
        {p.name: p.default for p in parameters if p.default is not p.empty},
        tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY),
    )


@contextlib.contextmanager
def _autocast(enabled: bool) -> Iterator[None]:
    """Switches autocast on or off: a forward that decides by it takes another way in the other mode."""
    before = {device: torch.is_autocast_enabled(device) for device in DEVICES}
    try:
        for device in DEVICES:
            torch.set_autocast_enabled(device, enabled)
        yield
    finally:
        for device, was in before.items():
            torch.set_autocast_enabled(device, was)


def _trace(
    module: torch.nn.Module, signature: Signature, training: bool, options: Iterable[str] = ()
) -> fx.Graph:
    """The graph of a call with all tensors that are needed, and with the arguments named in `options`."""
    with torch.set_grad_enabled(training), _autocast(not training):
        try:
            return _Tracer(signature, options).trace(module)
        except Untraceable:
            raise
        except Exception as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
            raise Untraceable(f"torch.fx cannot trace its forward: {line}") from error


def _shape(graph: fx.Graph, values: Mapping[Any, Any] = MappingProxyType({})) -> list[tuple[Any, Any, str]]:
    """The graph's operations and where their inputs come from, without numbers.

    values: {argument: value} of arguments that stand for their value.
    """
    nodes = [node for node in graph.nodes if node.op != "placeholder" or node.target not in values]
    index = {node: position for position, node in enumerate(nodes)}

    def place(argument: Any) -> str:
        if isinstance(argument, fx.Node) and argument in index:
            return f"value {index[argument]}"
        value = values[argument.target] if isinstance(argument, fx.Node) else argument
        return "number" if isinstance(value, bool | int | float) else repr(value)

    return [(n.op, n.target, repr(fx.node.map_aggregate((n.args, n.kwargs), place))) for n in nodes]


def _passed_on(
    module: torch.nn.Module, signature: Signature, training: bool, graph: fx.Graph
) -> fx.Graph | None:
    """`graph` with the optional arguments as inputs, or None where more is done than passing them on."""
    try:
        general = _trace(module, signature, training, signature.defaults)
    except Untraceable:
        return None
    return general if _shape(general, signature.defaults) == _shape(graph) else None


class Traced(NamedTuple):
    """The graphs of a forward."""

    graphs: dict[bool, fx.Graph]  # by training
    passed_on: bool  # arguments with a default are inputs of the graph, which only passes them on


def trace(module: torch.nn.Module) -> Traced:
    """Traces the forward of the module's class; the module and torch's generators stay as they are.

    Raises Untraceable with the reason: the forward needs more than tensors, decides by their values, takes
    another way in evaluation or under autocast, changes the module, or draws random numbers itself.
    """
    takes = signature(type(module))
    graphs: dict[bool, fx.Graph] = {}
    passed_on: dict[bool, fx.Graph | None] = {}
    for mode in MODES:
        with unchanged(module) as modules:
            for inner in modules:
                vars(inner)["training"] = mode
            graphs[mode] = _trace(module, takes, mode)
            if takes.defaults:
                passed_on[mode] = _passed_on(module, takes, mode, graphs[mode])
    if None not in passed_on.values():
        graphs |= {mode: general for mode, general in passed_on.items() if general is not None}
    if _shape(graphs[True]) != _shape(graphs[False]):
        raise Untraceable("its forward takes another way in evaluation or under autocast")
    return Traced(graphs, bool(takes.defaults) and None not in passed_on.values())

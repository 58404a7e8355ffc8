"""What a module's forward does with the modules inside it, as torch.fx graphs: in training and in evaluation.

Nothing is computed. Where a graph could be wrong for some later call, there is none, and a reason.
"""

import contextlib
import inspect
import operator
import random
import sys
from typing import NamedTuple

import torch
from torch import fx

MODES = (True, False)  # of training
DEVICES = ("cpu", "cuda")  # that autocast is asked about


class Untraceable(Exception):
    """Why there is no graph of a forward."""


# modules that ask for the class of a proxy for their own purposes
ASKING = ("torch.fx", "torch._", "torch.overrides", "torch.utils._pytree", "torch.nn.")


class _Proxy(fx.Proxy):
    @property
    def __class__(self):
        """The inputs without a default are tensors, which every call is held to; of others nobody knows."""
        if sys._getframe(1).f_globals.get("__name__", "").startswith(ASKING):
            return _Proxy
        if self._is_tensor:
            return torch.Tensor
        raise Untraceable("its forward asks for the type of a value in between")

    @property
    def _is_tensor(self):
        return self.node.op == "placeholder" and self.node.target in self.tracer.signature.names

    def __getattr__(self, name):
        """hasattr, for one, would always hear yes."""
        if hasattr(torch.Tensor, name):
            return super().__getattr__(name)
        if self._is_tensor:
            raise AttributeError(name)
        raise Untraceable(f"its forward asks a value in between for {name!r}, which tensors have not")

    def __setattr__(self, name, value):
        """The graph would not have it."""
        if name not in ("tracer", "node"):
            raise Untraceable(f"its forward sets {name!r} of a value")
        super().__setattr__(name, value)


def _record(name):
    def method(self, other):
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return method


# torch.fx records `x += y` as `x = x + y`, which other names of x would not see
_IN_PLACE = (
    "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor",
)  # fmt: skip
for _name in _IN_PLACE:
    setattr(_Proxy, f"__{_name}__", _record(_name))
IN_PLACE = {operator.setitem, operator.delitem, *(getattr(operator, name) for name in _IN_PLACE)}


class _Tracer(fx.Tracer):
    """Every module inside is called, not looked into."""

    proxy_buffer_attributes = True

    def __init__(self, signature, options):
        super().__init__(autowrap_modules=())  # wrapping `math` takes a third of the time
        self.signature, self.options, self.modes = signature, options, _modes()

    def is_leaf_module(self, module, name):
        return True

    def proxy(self, node):
        return _Proxy(node, self)

    def create_args_for_root(self, forward, is_module, concrete_args=None):
        def value(name):
            return self.create_proxy("placeholder", name, (), {})

        def with_options(root, *tensors):
            return forward(root, *tensors, **options)

        tensors = [value(name) for name in self.signature.names]
        options = {name: value(name) for name in self.options}
        return with_options, [self.root, *tensors]

    def create_node(self, *arguments, **options):
        if _modes() != self.modes:
            raise Untraceable("its forward computes a part in another grad or autocast mode")
        node = super().create_node(*arguments, **options)
        node.type = None  # an annotation, which the code would need by name
        return node

    def create_arg(self, a):
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, dict | list) and type(a) not in (dict, list):
            raise Untraceable(f"its forward makes a {type(a).__name__}")
        return super().create_arg(a)


def _modes():
    return torch.is_grad_enabled(), *(torch.is_autocast_enabled(device) for device in DEVICES)


class Signature(NamedTuple):
    names: tuple[str, ...]  # of the arguments without a default
    defaults: dict  # name: default
    positional: tuple[str, ...]  # names of those that can be passed by position


def signature(cls):
    """Of the forward; *args and **options are for calls that nobody traced."""
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


def _entries(value):
    """Of what can be changed in place."""
    if issubclass(type(value), dict):  # not isinstance, which proxies refuse
        return dict(value)
    return dict(enumerate(value)) if type(value) is list else None


def _state(module):
    """What a forward may change, and tracing must not: attributes, and entries of dictionaries and lists."""
    return {name: (value, _entries(value)) for name, value in vars(module).items() if name != "training"}


def _entries_same(entries, others):
    return entries is None or (
        entries.keys() == others.keys() and all(others[key] is value for key, value in entries.items())
    )


def _same(before, after):
    return before.keys() == after.keys() and all(
        value is after[name][0] and _entries_same(entries, after[name][1])
        for name, (value, entries) in before.items()
    )


def _set_back(module, before):
    for name in [*vars(module)]:
        if name not in before and name != "training":
            del vars(module)[name]
    for name, (value, entries) in before.items():
        vars(module)[name] = value
        if not _entries_same(entries, _entries(value)):
            value.clear()
            value.update(entries) if isinstance(value, dict) else value.extend(entries.values())


def _random_states():
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return random.getstate(), states


def _set_random_states(states):
    python, (cpu, *cuda) = states
    random.setstate(python)
    torch.set_rng_state(cpu)
    for state in cuda:
        torch.cuda.set_rng_state(state)


def _random_states_same(states, others):
    return states[0] == others[0] and all(map(torch.equal, states[1], others[1]))


@contextlib.contextmanager
def _autocast(enabled):
    """As it is in one of the two modes: a forward that decides by it takes another way in the other."""
    before = {device: torch.is_autocast_enabled(device) for device in DEVICES}
    try:
        for device in DEVICES:
            torch.set_autocast_enabled(device, enabled)
        yield
    finally:
        for device, was in before.items():
            torch.set_autocast_enabled(device, was)


def _trace(module, signature, training, options=()):
    """The graph of a call with all tensors that are needed, and with these of the other arguments."""
    with torch.set_grad_enabled(training), _autocast(not training):
        try:
            return _Tracer(signature, options).trace(module)
        except Untraceable:
            raise
        except Exception as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
            raise Untraceable(f"torch.fx cannot trace its forward: {line}") from error


def _shape(graph, values=()):
    """Operations and where their inputs come from, without the numbers; {argument: value} are no inputs."""
    nodes = [node for node in graph.nodes if node.op != "placeholder" or node.target not in values]
    index = {node: position for position, node in enumerate(nodes)}

    def place(argument):
        if isinstance(argument, fx.Node) and argument in index:
            return f"value {index[argument]}"
        value = values[argument.target] if isinstance(argument, fx.Node) else argument
        return "number" if isinstance(value, bool | int | float) else repr(value)

    return [(n.op, n.target, repr(fx.node.map_aggregate((n.args, n.kwargs), place))) for n in nodes]


def _passed_on(module, signature, training, graph):
    """`graph` with the optional arguments as inputs, or None where more is done than passing them on."""
    try:
        general = _trace(module, signature, training, signature.defaults)
    except Untraceable:
        return None
    return general if _shape(general, signature.defaults) == _shape(graph) else None


@contextlib.contextmanager
def _unchanged(module):
    """Sets module and generators back, and raises Untraceable where a forward changed them."""
    before, random_states = _state(module), _random_states()
    training = {inner: inner.training for inner in module.modules()}
    try:
        yield training
        if not _same(before, _state(module)):
            raise Untraceable("its forward changes attributes of the module")
        if not _random_states_same(random_states, _random_states()):
            raise Untraceable("its forward draws random numbers")
    finally:
        for inner, mode in training.items():
            vars(inner)["training"] = mode
        _set_back(module, before)
        _set_random_states(random_states)


class Traced(NamedTuple):
    graphs: dict  # training: torch.fx.Graph
    passed_on: bool  # the arguments that have a default are inputs of the graph, which are only passed on


def trace(module):
    """The forward of its class as `Traced`; the module and torch's generators stay as they are.

    Raises Untraceable with the reason: it needs more than tensors, decides by their values, takes another way
    in evaluation or under autocast, changes the module, or draws random numbers outside of torch's dropout.
    """
    takes = signature(type(module))
    graphs, passed_on = {}, {}
    for mode in MODES:
        with _unchanged(module) as modules:
            for inner in modules:
                vars(inner)["training"] = mode
            graphs[mode] = _trace(module, takes, mode)
            if takes.defaults:
                passed_on[mode] = _passed_on(module, takes, mode, graphs[mode])
    if all(passed_on.values()):
        graphs |= passed_on
    if _shape(graphs[True]) != _shape(graphs[False]):
        raise Untraceable("its forward takes another way in evaluation or under autocast")
    return Traced(graphs, bool(takes.defaults) and all(passed_on.values()))

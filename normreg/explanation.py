"""`explain`: which path each call of a model's normreg layers takes, and why."""

import contextlib
import inspect
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_map_only

from normreg import dispatch, foreign, functional, nn
from normreg.convert import ROOT, Skip, check_is_module, class_name, counted, replaceable, table

LAYERS = (foreign.Derived, *(getattr(nn, name) for name in nn.__all__))
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class Call:
    """A call of a normreg layer, or of a function of normreg inside another module."""

    name: str
    layer: str
    path: str  # "kernel", "torch", or "nothing" where the input itself is returned
    why: str  # dispatch's reason for torch
    shape: tuple | None
    dtype: torch.dtype | None
    device: torch.device | None

    @property
    def input(self):
        dtype = str(self.dtype).removeprefix("torch.")
        return "not a tensor" if self.dtype is None else f"{dtype} {list(self.shape or ())} {self.device}"


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: iterates over `calls`, in their order; prints as tables."""

    calls: tuple[Call, ...]
    not_called: tuple[Skip, ...]
    not_replaced: tuple[Skip, ...]
    compiled: bool = False  # parts of the model are; they were run without torch.compile

    def __iter__(self):
        return iter(self.calls)

    def __str__(self):
        paths = [call.path for call in self.calls]
        counts = ", ".join(f"{paths.count(path)} {path}" for path in ("kernel", "torch", "nothing"))
        lines = [f"{counted(paths, 'call')}: {counts}" if paths else "0 calls"]
        if self.calls:
            rows = [(call.name, call.layer, call.input, call.path, call.why) for call in self.calls]
            lines += table([("name", "layer", "input", "path", "why"), *rows])
        for layers, what in (
            (self.not_called, "never called by these inputs"),
            (self.not_replaced, "still torch's"),
        ):
            if layers:
                lines += ["", f"{counted(layers)} {what}"]
                lines += table([("name", "class", "why"), *((s.name, s.kind, s.reason) for s in layers)])
        if self.compiled:
            lines += ["", "The model was run without torch.compile: these are the paths of eager mode."]
        return "\n".join(lines)


def _copy(tensor):
    """The same values, strides, dtype and relation to autograd, in memory of its own."""
    with torch.enable_grad(), torch.inference_mode(tensor.is_inference()):
        joined = tensor.requires_grad and not tensor.is_leaf
        source = tensor if joined else tensor.detach()
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
        if plain and not tensor.is_nested and not tensor.is_quantized and 0 not in tensor.stride():
            options = dict(dtype=tensor.dtype, device=tensor.device)
            copy = torch.empty_strided(tensor.shape, tensor.stride(), **options).copy_(source)
        else:
            copy = source.clone()
        if tensor.requires_grad and not joined:
            copy.requires_grad_()
        return copy.view_as(copy) if joined and tensor._is_view() else copy


class _Copies(dict):
    """The copy of each tensor, the same one wherever that tensor stands."""

    def of(self, tensor):
        if id(tensor) not in self:
            self[id(tensor)] = (_copy(tensor), tensor)  # which keeps the id from being used again
        return self[id(tensor)][0]

    def known(self, tensor):
        return id(tensor) in self


@contextlib.contextmanager
def _undone(model, copies):
    """Undoes what a forward does to the attributes, buffers and plain tensors of the model's modules."""
    modules = list(model.modules())
    attributes = [(vars(module), dict(vars(module))) for module in modules]
    containers = [
        (value, value.copy())
        for _, before in attributes
        for value in before.values()
        if type(value) in (dict, OrderedDict, list, set)
    ]
    scripted = [
        (buffer, buffer.clone())
        for module in modules
        if isinstance(module, torch.jit.ScriptModule)
        for buffer in module.buffers(recurse=False)
    ]
    try:
        for module, (here, before) in zip(modules, attributes):
            if isinstance(module, torch.jit.ScriptModule):
                continue
            for name, value in before.items():
                if isinstance(value, torch.Tensor) and not value.requires_grad:
                    here[name] = copies.of(value)
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else copies.of(buffer)
            if getattr(module, "max_norm", None) is not None:  # an embedding, which shortens its rows
                for parameter in module.parameters(recurse=False):
                    copies.of(parameter)
        for module in modules:
            for name, parameter in module._parameters.items():
                if copies.known(parameter):
                    copy = copies.of(parameter).detach()
                    module._parameters[name] = torch.nn.Parameter(copy, parameter.requires_grad)
        yield
    finally:
        for value, before in containers:
            value.clear()
            value.extend(before) if isinstance(value, list) else value.update(before)
        for here, before in attributes:
            for name in here.keys() - before.keys():
                del here[name]
            here.update(before)
        with torch.no_grad():
            for buffer, before in scripted:
                buffer.copy_(before)


class _Recorder:
    """Follows which module is running: a hook would show to the model.

    nn.TransformerEncoderLayer, for one, leaves its fast path where a child has a hook.
    """

    def __init__(self, model):
        self.names = {module: name or ROOT for name, module in model.named_modules()}
        self.thread = threading.get_ident()
        self.running = []
        self.called = set()
        self.calls = []

    @contextlib.contextmanager
    def following(self):
        real = torch.nn.Module.__call__

        def call(module, *inputs, **options):
            if threading.get_ident() != self.thread:
                return real(module, *inputs, **options)
            self.called.add(module)
            self.running.append(module)
            before = len(self.calls)
            try:
                output = real(module, *inputs, **options)
            finally:
                self.running.pop()
            if isinstance(module, LAYERS) and len(self.calls) == before:
                self.undecided(module, next(iter([*inputs, *options.values()]), None), output)
            return output

        torch.nn.Module.__call__ = call
        try:
            with dispatch.watched(self.decided):
                yield
        finally:
            torch.nn.Module.__call__ = real

    def decided(self, operation, x, reason):
        if threading.get_ident() == self.thread:
            module = self.running[-1] if self.running else None
            known = isinstance(module, LAYERS)
            where = "normreg.functional" if hasattr(functional, operation) else "normreg"
            layer = class_name(type(module)) if known else f"{where}.{operation}"
            self.add(module, layer, "kernel" if reason is None else "torch", reason or "", x)

    def undecided(self, module, x, output):
        """Dropout in evaluation, for one, asks nobody."""
        if _tensor(x) and _tensor(output) and _owner(output) is _owner(x):
            path, why = "nothing", "it returns its input"
        else:
            path, why = "torch", "dispatch was not asked"
        self.add(module, class_name(type(module)), path, why, x)

    def add(self, module, layer, path, why, x):
        name = self.names.get(module, "(not a part of the model)")
        shape = dtype = device = None
        if _tensor(x):
            dtype, device = x.dtype, x.device
            shape = None if x.is_nested and x.layout is torch.strided else tuple(x.shape)
        self.calls.append(Call(name, layer, path, why, shape, dtype, device))


def _tensor(x):
    return isinstance(x, torch.Tensor)


def _owner(tensor):
    """The tensor whose memory this one is a view of."""
    return tensor._base if tensor._is_view() else tensor


def _why_not_called(name, model, called):
    """What is known of a layer that no call reached: the innermost module around it that did run."""
    *path, _ = name.split(".") if name != ROOT else [ROOT]
    while path and model.get_submodule(".".join(path)) not in called:
        path.pop()
    around = model.get_submodule(".".join(path))
    if type(around) is torch.nn.TransformerEncoderLayer:
        return (
            f"the fast path of {'.'.join(path)} computes it; torch.backends.mha.set_fastpath_enabled(False) "
            f"stops that"
        )
    return f"{'.'.join(path) or ROOT}, a {class_name(type(around))}, did not call it"


def _check(model, inputs, options):
    check_is_module(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
            raise ValueError(
                f"expected a model whose parameters exist, got {name or ROOT}, a {class_name(type(module))}, "
                f"which its first call completes: call the model once before explain"
            )
    try:
        signature = inspect.signature(model.forward)
    except ValueError:
        return
    try:
        signature.bind(*inputs, **options)
    except TypeError as wrong:
        raise TypeError(
            f"expected the inputs that {class_name(type(model))} is called with, got others ({wrong}): "
            f"what follows the model is passed on, as in explain(model, x)"
        ) from None


def explain(model, *inputs, **options):
    """Runs `model(*inputs, **options)` and says which path each call of a normreg layer took, and why.

    A call takes the kernel or, for the reason that `normreg.dispatch` gives, torch's operator. Those of
    `normreg.functional` from the forward of another module are found as well. The model is run as it
    stands, in its modes of training, in the grad, autocast and inference mode around the call: what is
    reported is what the same call does next. No backward is run.

    Nothing is left behind: inputs, buffers (running statistics among them) and tensors that are attributes
    of modules are copies during the run, attributes and torch's generators are set back, also where the
    model raises. Parameters are not copied, except those of embeddings with max_norm. The model's own
    hooks run. A compiled module is run in eager mode.

    Args:
        model: a torch.nn.Module: a layer or a whole model.
        inputs, options: what it is called with; tensors also in tuples, lists and dicts.

    Returns an `Explanation`: iterable over its calls, each with name, layer, path, why, and the input's
    shape, dtype and device; `not_called` are the normreg layers that this run did not reach, `not_replaced`
    torch's layers that `normreg.replace` would change. Printed, it is a table.

    Raises TypeError for what is not a module and for inputs that its forward does not take, ValueError for
    uninitialized lazy modules, and what the model raises.

    Equivalent::

        for module in model.modules():                      # and what dispatch answers meanwhile
            module.register_forward_hook(lambda module, inputs, output: print(module, inputs[0].shape))
        model(*inputs, **options)
    """
    _check(model, inputs, options)
    recorder, copies = _Recorder(model), _Copies()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    compiler = sys.modules.get("torch._dynamo")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(_undone(model, copies))
        if compiler is not None:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        inputs, options = tree_map_only(torch.Tensor, copies.of, (inputs, options))
        stack.enter_context(recorder.following())
        model(*inputs, **options)

    return Explanation(
        tuple(recorder.calls),
        tuple(
            Skip(
                name or ROOT, class_name(type(module)), _why_not_called(name or ROOT, model, recorder.called)
            )
            for name, module in model.named_modules()
            if isinstance(module, LAYERS) and module not in recorder.called
        ),
        tuple(
            Skip(name or ROOT, class_name(type(module)), "not replaced: call normreg.replace")
            for name, module in model.named_modules()
            if replaceable(module)
        ),
        compiler is not None and any(_is_compiled(module) for module in model.modules()),
    )


def _is_compiled(module):
    return isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None

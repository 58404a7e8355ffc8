"""`explain`: which path each call of a model's normreg layers takes, and why."""

import contextlib
import sys
import threading
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_map_only

from normreg import functional, nn
from normreg.functional import dispatch
from normreg.models import registry
from normreg.models.fusion import blocks
from normreg.models.replace import replaceable
from normreg.models.report import ROOT, Skip, class_name, counted, percentage, table
from normreg.models.unchanged import check_runs, unchanged

LAYERS = (registry.Derived, *(getattr(nn, name) for name in nn.__all__))


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
        counts = [f"{paths.count(path)} {path}" for path in ("kernel", "torch", "nothing")]
        if paths:
            counts[0] += f" ({percentage(paths.count('kernel'), len(paths))})"
        lines = [f"{counted(paths, 'call')}: {', '.join(counts)}" if paths else "0 calls"]
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


def explain(model, *inputs, **options):
    """Runs `model(*inputs, **options)` and says which path each call of a normreg layer took, and why.

    A call takes the kernel or, for the reason that `normreg.functional.dispatch` gives, torch's operator.
    Those of `normreg.functional` from the forward of another module are found as well. The model is run as
    it stands, in its modes of training, in the grad, autocast and inference mode around the call: what is
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
    check_runs(model, inputs, options, "explain")
    recorder = _Recorder(model)
    with unchanged(model) as copies:
        inputs, options = tree_map_only(torch.Tensor, copies.of, (inputs, options))
        with recorder.following():
            model(*inputs, **options)

    fused = {
        name
        for name, block in blocks.computed_inside(model).items()
        if model.get_submodule(block) in recorder.called
    }
    return Explanation(
        tuple(recorder.calls),
        tuple(
            Skip(
                name or ROOT, class_name(type(module)), _why_not_called(name or ROOT, model, recorder.called)
            )
            for name, module in model.named_modules()
            if isinstance(module, LAYERS) and module not in recorder.called and name not in fused
        ),
        tuple(
            Skip(name or ROOT, class_name(type(module)), "not replaced: call normreg.replace")
            for name, module in model.named_modules()
            if replaceable(module)
        ),
        "torch._dynamo" in sys.modules and any(_is_compiled(module) for module in model.modules()),
    )


def _is_compiled(module):
    return isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None

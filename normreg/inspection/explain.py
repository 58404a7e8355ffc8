"""`explain`: says which path each call of a model's normreg layers takes, and why."""

import contextlib
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from normreg import functional, nn
from normreg.functional import dispatch
from normreg.inspection.observer import Observer
from normreg.kernels import cpu
from normreg.models.fusion import calls
from normreg.models.naming import ROOT, counted, percentage
from normreg.models.registry import Foreign, class_name
from normreg.models.report import Fusion, Skip
from normreg.models.selection import replaceable
from normreg.models.tables import Table, Tables, grouped
from normreg.models.unchanged import check_runs, unchanged

LAYERS = (Foreign, *(getattr(nn, name) for name in nn.__all__))


@dataclass(frozen=True)
class Call:
    """A call of a normreg layer, or of a function of normreg inside another module."""

    name: str
    layer: str
    path: str  # "kernel", "torch", or "nothing" where the input itself is returned
    why: str  # dispatch's reason for torch
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    device: torch.device | None

    @property
    def input(self) -> str:
        """Dtype, shape and device of the input."""
        dtype = str(self.dtype).removeprefix("torch.")
        return "not a tensor" if self.dtype is None else f"{dtype} {list(self.shape or ())} {self.device}"


@dataclass(frozen=True, repr=False)
class Explanation(Tables):
    """What `explain` found: iterates over `calls`, in their order. Printed, it is a table of each kind.

    Attributes:
        calls: the calls of normreg layers and functions.
        not_called: normreg layers that the run did not reach, with the reason.
        not_replaced: torch's layers that `replace` would change.
        compiled: whether parts of the model are compiled; they were run without torch.compile.
        fused: patterns that one operator computes where the model is fused.
        not_fused: patterns that are left alone there, and graph breaks, with the reason.
    """

    calls: tuple[Call, ...]
    not_called: tuple[Skip, ...]
    not_replaced: tuple[Skip, ...]
    compiled: bool = False
    fused: tuple[Fusion, ...] = ()
    not_fused: tuple[Skip, ...] = ()

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    def tables(self) -> Iterable[Table]:
        paths = [call.path for call in self.calls]
        counts = [f"{paths.count(path)} {path}" for path in ("kernel", "torch", "nothing")]
        if paths:
            counts[0] += f" ({percentage(paths.count('kernel'), len(paths))})"
        heading = f"{counted(paths, 'call')}: {', '.join(counts)}" if paths else "0 calls"
        rows = [(call.name, call.layer, call.input, call.path, call.why) for call in self.calls]
        yield Table(heading, ("name", "layer", "input", "path", "why"), rows)
        layers, fused = ("name", "class", "why"), ("in", "what")
        not_called, not_replaced = counted(self.not_called), counted(self.not_replaced)
        yield grouped(Table(f"{not_called} never called by these inputs", layers, self.not_called))
        yield grouped(Table(f"{not_replaced} still torch's", layers, self.not_replaced))
        yield grouped(Table(f"{counted(self.fused, 'pattern')} fused", fused, self.fused))
        not_fused = f"{counted(self.not_fused, 'pattern')} not fused"
        yield grouped(Table(not_fused, (*fused, "why"), self.not_fused))

    def sentences(self) -> Iterable[str]:
        if self.compiled:
            yield "The model was run without torch.compile: these are the paths of eager mode."


class _Decisions(Observer):
    """Notes a `Call` for every decision of dispatch, and for every normreg layer that asks for none."""

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        with super().following(), dispatch.watched(self.decided):
            yield

    def decided(self, operation: str, x: Any, reason: str | None) -> None:
        """Notes the decision on an operation with the input x; no reason means that the kernel runs."""
        if not self.is_here():
            return
        module = self.running[-1][0] if self.running else None
        if isinstance(module, LAYERS):
            layer = class_name(type(module))
        else:
            where = "normreg.functional" if hasattr(functional, operation) else "normreg"
            layer = f"{where}.{operation}"
        self.note(module, layer, "kernel" if reason is None else "torch", reason or "", x)

    def returned(self, module: torch.nn.Module, inputs: Sequence[Any], output: Any) -> None:
        """Notes the call of a layer that asks nobody, as dropout in evaluation."""
        if not isinstance(module, LAYERS):
            return
        x = next(iter(inputs), None)
        if _is_tensor(x) and _is_tensor(output) and _owner(output) is _owner(x):
            path, why = "nothing", "it returns its input"
        else:
            path, why = "torch", "dispatch was not asked"
        self.note(module, class_name(type(module)), path, why, x)

    def note(self, module: torch.nn.Module | None, layer: str, path: str, why: str, x: Any) -> None:
        shape = dtype = device = None
        if _is_tensor(x):
            dtype, device = x.dtype, x.device
            shape = None if x.is_nested and x.layout is torch.strided else tuple(x.shape)
        self.notes.append(Call(self.name_of(module), layer, path, why, shape, dtype, device))


def _is_tensor(x: Any) -> bool:
    return isinstance(x, torch.Tensor)


def _owner(tensor: Any) -> Any:
    """The tensor that this one is a view of, or itself."""
    return tensor._base if tensor._is_view() else tensor


def _why_not_called(name: str, model: torch.nn.Module, called: Collection[torch.nn.Module]) -> str:
    """Why no call reached a layer, by the innermost module around it that did run."""
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


def explain(model: torch.nn.Module, *inputs: Any, **options: Any) -> Explanation:
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
    check_runs(model, inputs, options, "explain(model, x)")
    cpu.warn_of_late_variables()
    decisions = _Decisions(model)
    with unchanged(model) as copies:
        copied, named = tree_map_only(torch.Tensor, copies.of, (inputs, options))
        with decisions.following():
            model(*copied, **named)
    called = decisions.called
    fused, not_fused = calls.patterns_of(model, inputs, options)
    modules = [(name, name or ROOT, module) for name, module in model.named_modules()]
    return Explanation(
        tuple(decisions.notes),
        tuple(
            Skip(told, class_name(type(module)), _why_not_called(told, model, called))
            for name, told, module in modules
            if isinstance(module, LAYERS) and module not in called
        ),
        tuple(
            Skip(told, class_name(type(module)), "not replaced: call normreg.replace")
            for _, told, module in modules
            if replaceable(module)
        ),
        "torch._dynamo" in sys.modules and any(_is_compiled(module) for _, _, module in modules),
        fused,
        not_fused,
    )


def _is_compiled(module: torch.nn.Module) -> bool:
    return isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None

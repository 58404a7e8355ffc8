"""Puts the backend into a model, in place, and takes it out again."""

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from normreg.models.fusion.backend import LISTENERS, Backend
from normreg.models.fusion.names import Pattern
from normreg.models.hooks import has_global_hooks
from normreg.models.naming import ROOT
from normreg.models.registry import class_name
from normreg.models.report import Fusion, Skip
from normreg.models.unchanged import unchanged

FAST_PATHS = torch.nn.TransformerEncoder, torch.nn.TransformerEncoderLayer
_STARTS: weakref.WeakKeyDictionary[type, Callable[..., Any]] = weakref.WeakKeyDictionary()


class Settings:
    """Dynamo's settings while it traces for a fused call: those by which nothing of a forward is lost."""

    def __init__(self, **values: bool) -> None:
        self.values, self.calls = values, 0  # calls that want them: fused modules may be inside others

    def start(self, _: Any) -> None:
        if self.calls == 0:
            self.patch = torch._dynamo.config.patch(self.values)
            self.patch.__enter__()
        self.calls += 1

    def end(self, _: Any) -> None:
        self.calls -= 1
        if self.calls == 0:
            self.patch.__exit__(None, None, None)


# later hooks count, profilers see what they saw, and NumPy draws its own numbers
SETTINGS = Settings(
    skip_nnmodule_hook_guards=False, capture_profiler_record_function=True, use_numpy_random_stream=True
)


class FusedCall:
    """How a fused module is called: compiled, but by itself where calls are recorded or transformed."""

    def __init__(self, module: torch.nn.Module, backend: Backend) -> None:
        self.module = module
        self.compile(backend)

    def compile(self, backend: Backend) -> None:
        """Compiles the calls; graphs are made at the first ones."""
        backend.classes |= {type(module) for module in self.module.modules()}
        # in evaluation they run other operators, with other results where a sequence is padded
        self.has_fast_path = any(isinstance(module, FAST_PATHS) for module in self.module.modules())
        self.backend, self.compiled = backend, torch.compile(_start_of(type(self.module)), backend=backend)

    def takes_fast_path(self) -> bool:
        """Whether torch's own transformer layers may."""
        return (
            self.has_fast_path and not torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled()
        )

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling() or self.takes_fast_path() or _is_observed():
            return self.module._call_impl(*inputs, **options)
        if self.backend.is_stale():
            self.compile(self.backend.renewed())
        callbacks = torch._dynamo.callback_handler
        callbacks.start_callbacks.append(SETTINGS.start)
        callbacks.end_callbacks.append(SETTINGS.end)
        try:
            return self.compiled(self.module, *inputs, **options)
        finally:
            callbacks.start_callbacks.remove(SETTINGS.start)
            callbacks.end_callbacks.remove(SETTINGS.end)


def _start_of(cls: type) -> Callable[..., Any]:
    """Where Dynamo starts: code of the class's own, because graphs, and their limit, are a code object's."""
    if cls not in _STARTS:

        def start(self: torch.nn.Module, /, *inputs: Any, **options: Any) -> Any:
            return self._call_impl(*inputs, **options)

        start.__code__ = start.__code__.replace()
        _STARTS[cls] = start
    return _STARTS[cls]


def _is_observed() -> bool:
    """Whether somebody records calls, transforms them, or listens to all modules."""
    return bool(
        has_global_hooks()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.fx._symbolic_trace.is_fx_symbolic_tracing()
    )


def why_not_fused(module: torch.nn.Module) -> str | None:
    """Why a module's calls are not to be compiled, or None."""
    for inner in module.modules():
        if isinstance(inner, torch._dynamo.OptimizedModule) or (
            inner._compiled_call_impl is not None and not isinstance(inner._compiled_call_impl, FusedCall)
        ):
            return (
                'it is compiled already: use torch.compile(model, backend=normreg.fused("inductor")) for that'
            )
    return None


def put(module: torch.nn.Module, call: Any) -> None:
    """Makes a module's calls go through `call`, or none but its own."""
    if call is None:
        vars(module).pop("_compiled_call_impl", None)
    else:
        module._compiled_call_impl = call


def within(model: torch.nn.Module) -> torch.nn.Module:
    """The module whose calls are fused: the one that DistributedDataParallel wraps, or the model itself."""
    return within(model.module) if isinstance(model, DistributedDataParallel) else model


def fused_modules(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The names and modules that `fuse` was called with."""
    for name, module in model.named_modules():
        if isinstance(module._compiled_call_impl, FusedCall):
            yield name, module


def unfuse(model: torch.nn.Module) -> None:
    for _, module in [*fused_modules(model)]:
        put(module, None)


def patterns_of(
    model: torch.nn.Module, inputs: Sequence[Any], options: Mapping[str, Any]
) -> tuple[tuple[Fusion, ...], tuple[Skip, ...]]:
    """What is fused in the graphs that a call runs, and what not and why. Nothing is left behind."""
    modules = [*fused_modules(model)]
    if not modules:
        return (), ()
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[tuple[str, str, str | None], None] = {}
    graphs: list[str] = []

    def named(name: str, call: Any, *inputs: Any, **options: Any) -> Any:
        def told(patterns: list[Pattern]) -> None:
            graphs.append(name)
            found.update(dict.fromkeys((p.name(names, name), p.what, p.reason) for p in patterns))

        LISTENERS.append(told)
        try:
            return call(*inputs, **options)
        finally:
            LISTENERS.remove(told)

    with unchanged(model, eager=False) as copies:
        inputs, options = tree_map_only(torch.Tensor, copies.of, (inputs, options))
        for name, module in modules:
            put(module, functools.partial(named, name, module._compiled_call_impl))
        model(*inputs, **options)
    if not graphs:
        found[ROOT, class_name(type(model)), "there is no graph of it: TORCH_LOGS=graph_breaks says why"] = (
            None
        )
    fused = tuple(Fusion(name, what) for name, what, reason in found if reason is None)
    return fused, tuple(Skip(name, what, reason) for name, what, reason in found if reason is not None)

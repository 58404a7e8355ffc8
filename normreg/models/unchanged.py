"""Runs a model so that nothing is left behind: on copies of what its forward may change."""

import contextlib
import inspect
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.modules.lazy import LazyModuleMixin

from normreg.models.checks import check_is_module
from normreg.models.naming import ROOT
from normreg.models.registry import class_name

_ONE_AT_A_TIME = threading.RLock()


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the same values, strides, dtype and relation to autograd, in memory of its own."""
    with torch.enable_grad(), torch.inference_mode(tensor.is_inference()):
        joined = tensor.requires_grad and not tensor.is_leaf
        source = tensor if joined else tensor.detach()
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
        if plain and not tensor.is_nested and not tensor.is_quantized and 0 not in tensor.stride():
            shape, strides = tensor.shape, tensor.stride()
            copy = torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(source)
        else:
            copy = source.clone()
        if tensor.requires_grad and not joined:
            copy.requires_grad_()
        return copy.view_as(copy) if joined and tensor._is_view() else copy


class Copies(dict[int, tuple[torch.Tensor, torch.Tensor]]):
    """Copies of tensors: one of each tensor, wherever that tensor stands."""

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The copy of a tensor."""
        if id(tensor) not in self:
            self[id(tensor)] = (_copy(tensor), tensor)  # which keeps the id from being used again
        return self[id(tensor)][0]

    def known(self, tensor: Any) -> bool:
        """Whether there is a copy of it."""
        return id(tensor) in self


@contextlib.contextmanager
def _undone(model: torch.nn.Module, copies: Copies) -> Iterator[None]:
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
            for name, own in module._parameters.items():
                if own is not None and copies.known(own):
                    copy = copies.of(own).detach()
                    module._parameters[name] = torch.nn.Parameter(copy, own.requires_grad)
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
            for buffer, values in scripted:
                buffer.copy_(values)


def check_runs(model: Any, inputs: Sequence[Any], options: Mapping[str, Any], call: str) -> None:
    """Raises unless model is a module whose parameters exist and whose forward takes these inputs.

    call: an example of how they are given, for errors.
    """
    check_is_module(model)
    for name, module in model.named_modules():
        lazy: Any = module
        if isinstance(module, LazyModuleMixin) and lazy.has_uninitialized_params():
            raise ValueError(
                f"expected a model whose parameters exist, and those of {name or ROOT}, a "
                f"{class_name(type(module))}, are made by its first call: call model(x) once before {call}"
            )
    try:
        signature = inspect.signature(model.forward)
    except ValueError:
        return
    try:
        signature.bind(*inputs, **options)
    except TypeError as wrong:
        raise TypeError(
            f"expected the inputs that {class_name(type(model))} is called with, and these are not "
            f"({wrong}): give what model(...) is given, as in {call}"
        ) from None


@contextlib.contextmanager
def unchanged(model: torch.nn.Module, eager: bool = True) -> Iterator[Copies]:
    """Leaves buffers, attributes and random numbers as they were, also on an error.

    Yields the copies, of which there is one for each tensor. With `eager`, nothing inside is compiled.
    """
    copies = Copies()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(_undone(model, copies))
        if eager and "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield copies

"""Observes the calls of a model's modules while the model runs."""

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.modules import module as calls

from normreg.models.hooks import OBSERVERS
from normreg.models.naming import ROOT


class Observer:
    """Follows which modules run in the thread that made it. Subclasses note what they want in `notes`.

    It listens to all modules. Hooks on the model's own would show to the model: nn.TransformerEncoderLayer,
    for one, leaves its fast path where a child has a hook. What a module's own forward hooks do comes later.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.names = {module: name or ROOT for name, module in model.named_modules()}
        self.thread = threading.get_ident()
        self.running: list[tuple[torch.nn.Module, int]] = []  # the innermost last, with the notes before it
        self.called: set[torch.nn.Module] = set()
        self.notes: list[Any] = []

    def returned(self, module: torch.nn.Module, inputs: Sequence[Any], output: Any) -> None:
        """Called after a call of a module during which nothing was noted."""
        raise NotImplementedError

    def name_of(self, module: torch.nn.Module | None) -> str:
        """The module's name in the model."""
        name = None if module is None else self.names.get(module)
        return "(not a part of the model)" if name is None else name

    def is_here(self) -> bool:
        """Whether this is the thread that is followed."""
        return threading.get_ident() == self.thread

    def _before(self, module: torch.nn.Module, inputs: Sequence[Any]) -> None:
        if self.is_here():
            self.called.add(module)
            self.running.append((module, len(self.notes)))

    def _after(self, module: torch.nn.Module, inputs: Sequence[Any], *more: Any) -> None:
        """Where the call raised, torch does not give what was given by name."""
        if not self.is_here() or not self.running or self.running[-1][0] is not module:
            return
        _, before = self.running.pop()
        if len(more) == 2 and len(self.notes) == before:
            options: Mapping[str, Any] = more[0]
            self.returned(module, [*inputs, *options.values()], more[1])

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Follows the calls inside the with block."""
        with contextlib.ExitStack() as undo:
            if "torch._dynamo" in sys.modules and any(
                isinstance(module, torch._dynamo.OptimizedModule) for module in self.names
            ):
                undo.enter_context(warnings.catch_warnings())
                message = r"Using `torch.compile\(module\)` when there are global hooks"
                warnings.filterwarnings("ignore", message)  # of a call more, which does no harm here
            OBSERVERS.append(self)
            undo.callback(OBSERVERS.remove, self)
            undo.callback(calls.register_module_forward_pre_hook(self._before).remove)
            after = calls.register_module_forward_hook(self._after, with_kwargs=True, always_call=True)
            undo.callback(after.remove)  # which leaves this of it
            undo.callback(calls._global_forward_hooks_with_kwargs.pop, after.id)
            yield

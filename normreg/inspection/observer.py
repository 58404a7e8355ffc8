"""Observes the calls of a model's modules while the model runs."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from normreg.models.naming import ROOT


class Observer:
    """Follows which modules run in the thread that made it. Subclasses note what they want in `notes`.

    Meanwhile nn.Module.__call__ is another function. Hooks would show to the model and to torch.compile:
    nn.TransformerEncoderLayer, for one, leaves its fast path where a child has a hook.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.names = {module: name or ROOT for name, module in model.named_modules()}
        self.thread = threading.get_ident()
        self.running: list[torch.nn.Module] = []  # the innermost last
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

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Follows the calls inside the with block."""
        real = torch.nn.Module.__call__

        def call(module: torch.nn.Module, *inputs: Any, **options: Any) -> Any:
            if not self.is_here():
                return real(module, *inputs, **options)
            before = len(self.notes)
            self.called.add(module)
            self.running.append(module)
            try:
                output = real(module, *inputs, **options)
            finally:
                self.running.pop()
            if len(self.notes) == before:
                self.returned(module, [*inputs, *options.values()], output)
            return output

        with contextlib.ExitStack() as undo:
            undo.callback(setattr, torch.nn.Module, "__call__", real)
            torch.nn.Module.__call__ = call  # type: ignore[method-assign]
            yield

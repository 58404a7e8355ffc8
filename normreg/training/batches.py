"""Batches of a loader: how a model is called with one, and moving one to a device."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from normreg.models.registry import class_name


def call(model: torch.nn.Module, batch: Any) -> None:
    """Calls the model by name with what a mapping holds, with a list's or tuple's first entry, or with x.

    Raises TypeError where the model's forward does not take that.
    """
    if isinstance(batch, (list, tuple)):
        if not batch:
            raise ValueError(
                f"expected batches that begin with what the model is called with, got an empty "
                f"{type(batch).__name__}: pass forward=, a function (model, batch)"
            )
        batch = batch[0]
    if isinstance(batch, (str, bytes)):
        raise TypeError(
            f"expected batches of tensors, got {batch!r}: let the loader make these, or pass forward=, a "
            f"function (model, batch)"
        )
    named = isinstance(batch, Mapping)
    inputs, options = ((), dict(batch)) if named else ((batch,), {})
    try:
        inspect.signature(model.forward).bind(*inputs, **options)
    except ValueError:  # it has no signature
        pass
    except TypeError as wrong:
        got = f"mappings with the keys {[*options]}" if named else type(batch).__name__
        key = repr(next(iter(options), "x")) if named else "0"
        raise TypeError(
            f"expected batches that {class_name(type(model))} can be called with, got {got} ({wrong}): pass "
            f"for example forward=lambda model, batch: model(batch[{key}])"
        ) from None
    model(*inputs, **options)


def moved(batch: Any, device: Any) -> Any:
    """The batch with its tensors on the device: those in mappings, lists and tuples, and what has a `to`."""
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: moved(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(moved(value, device) for value in batch)
    return batch

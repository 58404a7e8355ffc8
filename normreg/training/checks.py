"""Checks of what callers give to the functions of this folder; each error names the argument and a remedy."""

import math
import numbers
from collections.abc import Iterable

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

Parameters = Iterable[torch.Tensor] | Iterable[tuple[str, torch.Tensor]] | dict[str, torch.Tensor]


def check_weight_decay(weight_decay: float) -> None:
    """Raises TypeError for what is no number, ValueError for one that is negative or not finite."""
    if not isinstance(weight_decay, numbers.Real):
        raise TypeError(
            f"expected weight_decay to be a number, got {type(weight_decay).__name__}: pass a float, such as "
            f"1e-4"
        )
    if not 0 <= weight_decay < math.inf:  # NaN, too
        raise ValueError(
            f"expected weight_decay to be finite and at least 0, got {weight_decay}: 0 turns it off, and "
            f"AdamW's usual value is 0.01"
        )


def _named(parameters: Parameters) -> list[tuple[str, object]]:
    """Pairs (how an error names the parameter, parameter)."""
    if isinstance(parameters, torch.Tensor):
        parameters = [parameters]
    elif isinstance(parameters, torch.nn.Module):
        raise TypeError(
            f"expected parameters, got the module {type(parameters).__name__}: pass its .parameters() or "
            f".named_parameters()"
        )
    elif isinstance(parameters, dict):
        parameters = parameters.items()
    try:
        given = list(parameters)
    except TypeError:
        raise TypeError(
            f"expected an iterable of tensors or of (name, tensor) pairs, got {type(parameters).__name__}: "
            f"pass model.parameters() or model.named_parameters()"
        ) from None
    if not given:
        raise ValueError(
            "expected at least one parameter, got an empty iterable: pass model.parameters() anew at every "
            "call, because a generator that was used is empty"
        )
    pairs: list[tuple[str, object]] = []
    for position, entry in enumerate(given):
        if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str):
            pairs.append((f"parameter {entry[0]!r}", entry[1]))
        else:
            pairs.append((f"parameter {position}", entry))
    return pairs


def checked_parameters(parameters: Parameters) -> list[torch.Tensor]:
    """The tensors, without their names: all exist, are of floating-point dtypes and on one device."""
    tensors: list[torch.Tensor] = []
    pairs = _named(parameters)
    for name, tensor in pairs:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"expected {name} to be a tensor, got {type(tensor).__name__}: pass model.parameters() or "
                f"model.named_parameters()"
            )
        if isinstance(tensor, (UninitializedBuffer, UninitializedParameter)):
            raise ValueError(
                f"expected {name} to exist, got one that its layer's first call completes: call the model "
                f"once before"
            )
        if not tensor.is_floating_point():
            raise TypeError(
                f"expected {name} to be of a floating-point dtype, got {tensor.dtype}: leave it out, "
                f"or convert it"
            )
        tensors.append(tensor)
        if tensor.device != tensors[0].device:
            raise ValueError(
                f"expected all parameters on one device, got {pairs[0][0]} on {tensors[0].device} and "
                f"{name} on {tensor.device}: add up the penalties of each device, moved to one"
            )
    return tensors

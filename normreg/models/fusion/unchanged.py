"""Holds a module and the random generators to what they were while its forward is traced."""

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from normreg.models.fusion import Untraceable


def _entries(value: Any) -> dict[Any, Any] | None:
    """The entries of a dictionary or list, which can be changed in place; None for all else."""
    if issubclass(type(value), dict):  # not isinstance, which proxies refuse
        return dict(value)
    return dict(enumerate(value)) if type(value) is list else None


def _state(module: torch.nn.Module) -> dict[str, tuple[Any, Any]]:
    """The attributes of a module, and the entries of those that are dictionaries or lists."""
    return {name: (value, _entries(value)) for name, value in vars(module).items() if name != "training"}


def _entries_same(entries: dict[Any, Any] | None, others: Any) -> bool:
    return entries is None or (
        entries.keys() == others.keys() and all(others[key] is value for key, value in entries.items())
    )


def _same(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return before.keys() == after.keys() and all(
        value is after[name][0] and _entries_same(entries, after[name][1])
        for name, (value, entries) in before.items()
    )


def _set_back(module: torch.nn.Module, before: Mapping[str, Any]) -> None:
    for name in [*vars(module)]:
        if name not in before and name != "training":
            del vars(module)[name]
    for name, (value, entries) in before.items():
        vars(module)[name] = value
        if not _entries_same(entries, _entries(value)):
            value.clear()
            value.update(entries) if isinstance(value, dict) else value.extend(entries.values())


def _random_states() -> tuple[Any, list[torch.Tensor]]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return random.getstate(), states


def _set_random_states(states: tuple[Any, list[torch.Tensor]]) -> None:
    python, (cpu, *cuda) = states
    random.setstate(python)
    torch.set_rng_state(cpu)
    for state in cuda:
        torch.cuda.set_rng_state(state)


def _random_states_same(states: Any, others: Any) -> bool:
    return states[0] == others[0] and all(map(torch.equal, states[1], others[1]))


@contextlib.contextmanager
def unchanged(module: torch.nn.Module) -> Iterator[dict[torch.nn.Module, bool]]:
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

"""Whether a module's call can be left out: not where somebody listens to it."""

from typing import Any

from torch import nn
from torch.nn.modules import module as calls

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
OBSERVERS: list[Any] = []  # of explain and diagnose, each with a hook before and one after all calls


def has_global_hooks() -> bool:
    """Whether somebody listens to all modules; what is observed runs as if it were not."""
    if calls._global_backward_hooks or calls._global_backward_pre_hooks:
        return True
    hooks = len(calls._global_forward_pre_hooks) + len(calls._global_forward_hooks)
    return hooks > 2 * len(OBSERVERS)


def why_not_bypassed(module: nn.Module) -> str | None:
    """The reason why a call of the module cannot be left out, or None."""
    attributes = vars(module)
    for hooks in HOOKS:
        if attributes[hooks]:
            return "a hook sits on it"
    return "its forward is overridden on the instance" if "forward" in attributes else None


def is_listened_to(*modules: nn.Module) -> bool:
    """Whether a call of one of these cannot be left out."""
    return has_global_hooks() or any(why_not_bypassed(module) for module in modules)

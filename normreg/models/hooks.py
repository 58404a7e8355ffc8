"""Whether a module's call can be left out: not where somebody listens to it."""

from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
has_global_hooks = nn.modules.module._has_any_global_hook


def why_not_bypassed(module: nn.Module) -> str | None:
    """The reason why a call of the module cannot be left out, or None."""
    attributes = vars(module)
    for hooks in HOOKS:
        if attributes[hooks]:
            return "a hook sits on it"
    return "its forward is overridden on the instance" if "forward" in attributes else None

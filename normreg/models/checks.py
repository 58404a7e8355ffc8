"""Checks the model that a function of this library is given."""

from typing import Any

import torch

from normreg.models.naming import ROOT


def check_is_module(model: Any) -> None:
    """Raises TypeError for what is no torch.nn.Module."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"expected a torch.nn.Module, got {type(model).__name__}: pass the model itself, not its "
            f"output, parameters or state_dict"
        )


def named_modules(model: Any) -> list[tuple[str, torch.nn.Module]]:
    """All modules of a model with their names, as reports and selections have them."""
    check_is_module(model)
    return [(name or ROOT, module) for name, module in model.named_modules()]

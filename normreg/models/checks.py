"""Checks the model that a function of this library is given."""

from typing import Any

import torch


def check_is_module(model: Any) -> None:
    """Raises TypeError for what is no torch.nn.Module."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"expected a torch.nn.Module, got {type(model).__name__}: pass the model itself, not its "
            f"output, parameters or state_dict"
        )

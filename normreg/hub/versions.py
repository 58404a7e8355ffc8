"""What a vendored copy needs besides itself; it asks before it imports anything else of its own."""

import torch
from torch.torch_version import TorchVersion

TORCH, TRITON = "2.11", "3.6"  # or newer


def check() -> None:
    """Raises ImportError for a torch, or an installed Triton, that is older than the copy needs."""
    installed = {"torch": (torch.__version__, TORCH)}
    try:
        import triton

        installed["triton"] = triton.__version__, TRITON
    except ImportError:
        pass  # all layers run on torch's operators
    for package, (version, needed) in installed.items():
        if TorchVersion(version) < needed:
            raise ImportError(
                f"expected {package} {needed} or newer, got {package} {version}: upgrade {package}, or "
                f"leave the layers as they are, without this repository"
            )

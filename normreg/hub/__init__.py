"""normreg's layers for Hugging Face's `kernels`: of this package, or of a repository that needs none."""

from normreg.hub.modes import mapping
from normreg.hub.repository import write

__all__ = ["mapping", "write"]

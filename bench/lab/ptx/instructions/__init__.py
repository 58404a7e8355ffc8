"""The effect of each instruction: small functions, registered by name as these modules are imported."""

from . import (  # noqa: F401
    arithmetic,
    bitwise,
    comparisons,
    conversions,
    copies,
    integers,
    loads_and_stores,
    matrices,
    moves,
    transcendental,
    warps,
)
from .table import build

__all__ = ["build"]

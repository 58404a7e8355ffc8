"""Lets the kernels' modules be imported where Triton cannot be: they define kernels that nothing launches.

Meanwhile `triton` and `triton.language` are stand-ins, afterwards as absent as they were.
"""

import importlib
import pkgutil
import sys
from collections.abc import Collection
from types import ModuleType
from typing import Any


class StandIn(ModuleType):
    """A module of Triton, or anything in it: it has every attribute, and any call of it returns itself."""

    def __getattr__(self, name: str) -> "StandIn":
        if name.startswith("__"):  # which Python asks for
            raise AttributeError(name)
        return StandIn(name)

    def __call__(self, *_: Any, **__: Any) -> "StandIn":
        return self


def import_all(package: ModuleType, but: Collection[str]) -> None:
    """Imports the package's modules except those of these names, which need Triton itself."""
    names = "triton", "triton.language"
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules.update({name: StandIn(name) for name in names})
    try:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.rpartition(".")[2] not in but:
                importlib.import_module(module.name)
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(before)

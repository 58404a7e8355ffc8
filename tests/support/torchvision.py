"""A stand-in for torchvision, without which timm cannot be imported.

timm asks torchvision for its data sets and transforms, and the package index has no torchvision for torch's
build for CPUs.
"""

import contextlib
import importlib.machinery
import importlib.util
import sys
import types


class Anything(type):
    """A class in which every name is another such class."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class StandIn(types.ModuleType):
    __path__ = ()
    __getattr__ = Anything.__getattr__


class Finder:
    """Finds a stand-in for torchvision and for every module inside it."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


@contextlib.contextmanager
def at_hand():
    """torchvision or, where it is not installed, the stand-in, which nothing finds afterwards."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    sys.meta_path.append(finder := Finder())
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]

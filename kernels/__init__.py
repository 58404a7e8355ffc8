"""Triton kernels, imported as `normreg.kernels`.

One file per operation: the `@triton.jit` kernels, then the launchers, which take and return tensors.
Nothing here knows about autograd or `torch.nn`.
"""

if __name__ != "normreg.kernels":
    raise ImportError("import this folder as normreg.kernels: `pip install -e .` maps it there")

from . import cpu as cpu  # before triton is imported, whose variable it may set

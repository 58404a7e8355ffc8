"""Triton kernels and the launchers that take and return tensors, imported as `normreg.kernels`.

Nothing here knows about autograd or `torch.nn`. A family of kernels is a folder: its `__init__` has the
formulas, and its files are named by how the data are cut.

    family            computes                                  and, in files of these names
    layer_norm/       LayerNorm of rows                         rms_norm, channels (of each position)
    batch_norm/       BatchNorm, activation and residual        synchronized (over ranks)
    qk_norm/          LayerNorm or RMSNorm of the heads of queries and keys
    group_norm/       GroupNorm                                 instance_norm
    ada_norm/         norms with a scale and shift of each sample
    gated_norm/       RMSNorm of groups of a row, and a gate
    dropout/          dropout of elements and of groups         add, add_norm, bias_act
    column_sums.py    sums of partial results, the last launch of a backward

A size has these words:

    row         what is normalised together in LayerNorm, [cols]; a tensor is [samples, rows, cols]
    channel     what is normalised together in BatchNorm: its positions in all samples
    group       what is normalised together in GroupNorm, or shares one decision in dropout
    tile        what a program holds at once, in registers
    tiles       several tiles side by side that hold one row
    chunk       one of several tiles of a row that a program visits one after the other
    wide        of a row: not held, but its column sums are, by one program or two side by side
    split       a part of a channel or group that has a program of its own
    block       rows, columns or channels of a tile, as an index among programs
    partial     what one program has added up, one row a program
    vector      the power of two up to 8 by which kernels take the contiguous size divided
    program     one of the grid of a launch, Triton's word

`launch` has what is decided once and kept (a Launch) and what runs it. `device/` is code for the GPU alone,
`tiling/` every number that it is compiled for, with its reason. `twins` are kernels as the graphs of
torch.compile hold them.
"""

if "." not in __name__:  # normreg.kernels, or that of a vendored copy
    raise ImportError("import this folder as normreg.kernels: `pip install -e .` maps it there")

import sys

from . import absent
from . import cpu as cpu  # before triton is imported, whose variable it may set

if cpu.ABSENT:
    absent.import_all(sys.modules[__name__], but=("interpreter", "twins"))

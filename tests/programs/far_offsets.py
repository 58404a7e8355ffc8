"""Runs a case of kernels at elements beyond 2^31: `python far_offsets.py CASE`.

The interpreter runs the one program that is asked for. A wrong address is outside the process or reads zeros,
so each case has a process of its own.
"""

import sys
import warnings

import torch

from programs import far_channels, far_dropout, far_gated, far_heads, far_rows

CASES = far_rows.CASES | far_channels.CASES | far_dropout.CASES | far_heads.CASES | far_gated.CASES

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    case, *arguments = CASES[sys.argv[1]]
    case(*arguments)

"""Runs the files that it is given in one namespace, as a user on a CPU would from another folder."""

import os
import sys
from pathlib import Path

for variable in ("TRITON_INTERPRET", "NORMREG_CPU_KERNELS"):  # before normreg is imported
    os.environ.pop(variable, None)
sys.modules["kernels"] = None
namespace = {"__name__": "__main__"}
for number, path in enumerate(sys.argv[1:]):
    print(f"--- {number}")
    exec(Path(path).read_text(), namespace)

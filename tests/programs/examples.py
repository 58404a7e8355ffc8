"""Runs the files that it is given, each alone, as a user on a CPU would from another folder.

One that sets a variable before it imports normreg runs in a process of its own.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

for variable in ("TRITON_INTERPRET", "NORMREG_CPU_KERNELS"):  # before normreg is imported
    os.environ.pop(variable, None)
sys.modules["kernels"] = None
import torch  # noqa: E402
from support import hub, torchvision  # noqa: E402

ROOT = str(Path(__file__).parents[2])
for number, path in enumerate(sys.argv[1:]):
    namespace = {"__name__": "__main__"}
    print(f"--- {number}", flush=True)
    code = Path(path).read_text()
    if "os.environ" in code or "lab.install" in code:
        subprocess.run([sys.executable, path], check=True, env=os.environ | {"PYTHONPATH": ROOT})
    else:
        hubs = hub.hugging_faces_kernels() if "from kernels import" in code else contextlib.nullcontext()
        with hubs, torchvision.at_hand() if "import timm" in code else contextlib.nullcontext():
            exec(code, namespace)
    if torch.distributed.is_initialized():
        namespace.clear()  # a model that outlives its group may wait for gloo forever
        torch.distributed.destroy_process_group()

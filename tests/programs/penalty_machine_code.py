"""Prints, as JSON, registers, spills and widest accesses of the penalty's kernels."""

import json

import torch

from bench.lab.without_gpu import as_on_a_gpu, noted_launches
from bench.perf import static
from normreg.kernels import l2_penalty

with as_on_a_gpu(), noted_launches() as noted:
    for dtypes in ((torch.bfloat16,), (torch.float32, torch.bfloat16, torch.float16, torch.float64)):
        tensors = [torch.empty(40000, dtype=dtype) for dtype in dtypes]
        y = l2_penalty.l2_penalty_forward(tensors, 0.1)
        l2_penalty.l2_penalty_backward(y, tensors, 0.1)
for launch in noted:
    if launch.kernel.__name__ != "l2_penalty_table_kernel":
        code = static.nvidia_machine_code(static.compile_launch(launch, static.TARGETS["sm_90"]))
        print(json.dumps([launch.kernel.__name__, code.registers, code.spill_bytes, max(code.access_bytes)]))

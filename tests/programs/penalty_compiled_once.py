"""Compiles the penalty's kernels once, for any number of tensors."""

import torch

from bench.lab import stub_driver
from normreg.kernels import l2_penalty

record = stub_driver.install()
for tensors in (2, 3, 17, 600):
    for size in (1, 1000, 50000)[: 3 if tensors < 600 else 1]:
        given = [torch.zeros(size + i) for i in range(tensors)]
        y = l2_penalty.l2_penalty_forward(given, 0.1)
        l2_penalty.l2_penalty_backward(y, given, 0.1)
assert len(record.launched) > 40
assert sorted(record.compiled) == sorted({name for name, _ in record.launched}), record.compiled
assert len(record.compiled) == 4

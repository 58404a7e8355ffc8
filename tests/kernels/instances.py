"""What tests of InstanceNorm share: its two modes, and running statistics."""

import pytest
import torch

both_modes = pytest.mark.parametrize("use_input_stats", [True, False], ids=["input", "running"])


def running_for(shape, device, dtype=torch.float32):
    return [t.to(device, dtype) for t in (torch.randn(shape[1]), torch.rand(shape[1]) + 0.1)]

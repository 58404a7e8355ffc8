"""dtypes of the results that CUDA's autocast computes in float32."""

import torch

# torch 2.12 put it on CUDA's list of operations in float32; before, its result has the input's dtype
RUNS_RMS_NORM = torch._C._dispatch_has_kernel_for_dispatch_key("aten::rms_norm", "AutocastCUDA")


def layer_norm_dtype(x):
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and torch.is_autocast_enabled("cuda"):
        return torch.float32
    return x.dtype


def rms_norm_dtype(x):
    return layer_norm_dtype(x) if RUNS_RMS_NORM else x.dtype

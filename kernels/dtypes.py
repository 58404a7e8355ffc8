"""The dtypes that kernels compute in, and their names in Triton."""

import torch
import triton.language as tl


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic, statistics and partial sums: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float64: tl.float64,
}
FLOATING = tuple(TRITON_DTYPES)
FLOAT8 = torch.float8_e4m3fn  # in which norms for inference give their result


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """The dtype's name in Triton."""
    return TRITON_DTYPES[dtype]

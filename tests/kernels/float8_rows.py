"""`layer_norm` and `rms_norm` in float8 as their tests call them, and what is exact."""

import pytest
import torch
import torch.nn.functional as F

from normreg import functional
from normreg.kernels.tiling import hardware

FLOAT8 = torch.float8_e4m3fn
LARGEST, LEAST_SCALE = 448.0, 1 / (448 * 512)
KERNELS = {"layer_norm_float8_kernel", "layer_norm_float8_tiles_kernel"}


@pytest.fixture(autouse=True)
def inference(device):
    """No gradients, and a GPU that has float8, or compiled code of one."""
    if not hardware.has_float8(device):
        pytest.skip("there is no float8 before sm_89")
    with torch.no_grad():
        yield


def in_float8(name, x, weight=None, bias=None, scale=None, eps=1e-5, dims=1):
    shape, bias = x.shape[x.dim() - dims :], [bias] if name == "layer_norm" else []
    return getattr(functional, name)(x, shape, weight, *bias, eps, out_dtype=FLOAT8, scale=scale)


def exactly(name, x, weight=None, bias=None, eps=1e-5, dims=1):
    """y in float64."""
    x, weight, bias = (None if t is None else t.double() for t in (x, weight, bias))
    shape = x.shape[x.dim() - dims :]
    if name == "rms_norm":
        return F.rms_norm(x, shape, weight, eps)
    return F.layer_norm(x, shape, weight, bias, eps)


def inputs(name, shape, cols, dtype, device):
    x = torch.randn(shape, device=device).to(dtype)
    weight, bias = torch.randn(2, cols, device=device).to(dtype)
    return [x, weight, bias if name == "layer_norm" else None]


def bits(y):
    """The codes, with one for NaN."""
    return torch.where(y.float().isnan(), 0x7F, y.view(torch.uint8))


def rounded(y, scale):
    """y in float8, by torch."""
    return (y.float() * scale.reciprocal()).clamp(-LARGEST, LARGEST).to(FLOAT8)

"""What tests of gated norms share: both orders, inputs, and the comparison with torch's operators."""

import pytest
import torch
from support.reference import assert_agrees

from bench.operations.rms_norm_gated import in_wider
from normreg import functional

ORDERS = {"before": dict(norm_before_gate=True), "behind": dict(norm_before_gate=False)}
every_order = pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
KERNELS = ["gated_norm_forward_kernel", "gated_norm_backward_kernel", "column_sums_kernel"]


def made(device, dtype, *shape, present=(True, True)):
    """x, gate, weight and bias, None where these are not present."""
    shapes = shape, shape, *(shape[-1:] if there else None for there in present)
    return [
        None if size is None else torch.randn(size, device=device).to(dtype).requires_grad_()
        for size in shapes
    ]


def assert_gated(inputs, dy=None, **options):
    return assert_agrees(
        lambda *inputs: functional.rms_norm_gated(*inputs, **options),
        lambda *inputs: in_wider(*inputs, **options).contiguous(),
        inputs,
        dy,
    )

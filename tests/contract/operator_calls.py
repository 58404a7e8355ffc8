"""What tests of calls of operators share."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.fixture(autouse=True)
def guarded_memory():
    """Not here: opcheck compares storage offsets, which are not 0 between guard bands."""


def assert_fakes_are_like_the_results(operator, arguments):
    """Without autograd between, and in what opcheck does not compare."""
    with torch.no_grad():
        real = operator(*arguments)
        with FakeTensorMode() as mode:
            faked = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
            fake = operator(*faked)
    for r, f in zip(*(t if isinstance(t, tuple) else (t,) for t in (real, fake)), strict=True):
        assert (r is None) == (f is None)
        if r is not None:
            assert (r.shape, r.stride(), r.dtype, r.device) == (f.shape, f.stride(), f.dtype, f.device)

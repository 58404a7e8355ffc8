"""Programs of a kernel at elements beyond 2^31, in memory that is reserved but never touched elsewhere."""

import torch
from triton.runtime.interpreter import interpreter_builder as builder

from normreg.kernels import launch

ROWS, COLS = 2**21 + 4, 1024
LAST_TILE = ROWS // 4 - 1  # of 4 rows
assert (ROWS - 4) * COLS >= 2**31


def run_program(kernel, program, programs, *arguments, **constants):
    """The one program of so many; tensors that the kernel takes in tuples may be given one by one."""
    call = launch.Launch(kernel, (1,), torch.device("cpu"), num_warps=4, **constants)
    one_by_one = [each for given in arguments for each in (given if isinstance(given, tuple) else (given,))]
    set_grid_idx, set_grid_dim = builder.set_grid_idx, builder.set_grid_dim
    builder.set_grid_dim = lambda *_: set_grid_dim(*programs)
    builder.set_grid_idx = lambda *_: set_grid_idx(*program)
    try:
        kernel[(1,)](*call.arguments(one_by_one))
    finally:
        builder.set_grid_idx, builder.set_grid_dim = set_grid_idx, set_grid_dim


def on_y(program, programs):
    return (0, program[0], 0), (1, programs[0], 1)


def reserved(*shape, dtype=torch.float16):
    return torch.empty(shape, dtype=dtype)


def check(result, expected):
    torch.testing.assert_close(result.float(), expected.float(), rtol=2e-3, atol=2e-3)

"""The determinism that `normreg.functional` promises, on compiled code, whose layouts follow addresses.

The problems are those of `bench smoke`, which reach every kernel.
"""

import pytest
import torch

from bench.operations import DECLARED
from bench.smoke import checks
from bench.smoke.cases import Case
from normreg import functional

CASES = [
    Case(operation, smoke.dtypes.split()[0], smoke)
    for operation in DECLARED.values()
    for smoke in operation.smoke
]
ROWS_APART = [case for case in CASES if "batch_norm" not in case.family]  # where no row sees another
ALIGNED = 16  # bytes


def at(tensor, offset):
    """A leaf with the tensor's values and strides, so many bytes behind a multiple of 256."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    buffer = torch.zeros(extent + 512, dtype=tensor.dtype, device=tensor.device)
    start = (-buffer.data_ptr() % 256 + offset) // tensor.element_size()
    moved = buffer.as_strided(tensor.shape, tensor.stride(), start)
    moved.copy_(tensor.detach())
    assert moved.data_ptr() % 256 == offset
    return moved.detach().requires_grad_()


def forward(problem, inputs):
    torch.manual_seed(checks.SEED)
    results = problem.ours(*inputs)
    return results if isinstance(results, tuple) else (results,)


def results_at(problem, offset):
    """Results and gradients of inputs, with incoming gradients, that begin at this offset."""
    inputs = [at(x, offset) for x in problem.inputs]
    results = forward(problem, inputs)
    differentiable = [y for y in results if y.requires_grad]
    dys = [at(checks.incoming(y), offset).detach() for y in differentiable]
    return [*(y.detach() for y in results), *torch.autograd.grad(differentiable, inputs, dys)]


@pytest.mark.some(10)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_bits_at_every_aligned_address(device, case):
    problem = case.problem(device)
    first = results_at(problem, 0)
    for offset in (0, ALIGNED, 15 * ALIGNED):
        assert all(map(torch.equal, results_at(problem, offset), first))


@pytest.mark.some(10)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agreement_at_addresses_that_are_not_aligned(device, case):
    problem = case.problem(device)
    found = results_at(problem, problem.inputs[0].element_size())
    theirs, their_gradients = checks.run(problem.theirs, checks.leaves(problem.inputs))
    exact, exact_gradients = checks.run(problem.theirs, checks.leaves(problem.inputs, torch.float64))
    theirs, exact = (*theirs, *their_gradients), (*exact, *exact_gradients)
    for ours, torchs, right in zip(found, theirs, exact, strict=True):
        allowed = checks.error_in_units(torchs, right) + checks.UNITS[ours.dtype]
        assert checks.error_in_units(ours, right) <= allowed


@pytest.mark.some(10)
@pytest.mark.parametrize("case", ROWS_APART, ids=str)
def test_a_row_is_the_same_among_any_number_of_others(device, case):
    problem = case.problem(device)
    shape = problem.inputs[0].shape
    y = forward(problem, checks.leaves(problem.inputs))[0]
    parts = [slice(0, 1), slice(0, shape[0] - 1)]
    if not problem.draws:  # a mask belongs to the place in the tensor
        parts += [slice(1, None), slice(shape[0] // 2, None)]
    for part in parts:
        inputs = [x[part].clone() if x.shape == shape else x for x in problem.inputs]
        assert torch.equal(forward(problem, inputs)[0], y[part])


def test_words_of_two_elements_begin_within_words(device):
    x, dy = (torch.randn(3, 1024, device=device).to(torch.bfloat16) for _ in range(2))
    gradients = []
    for offset in (0, x.element_size()):
        moved = at(x, offset)
        y = functional.layer_norm(moved, (1024,))
        gradients += torch.autograd.grad(y, moved, at(dy, offset))
    assert torch.equal(*gradients)

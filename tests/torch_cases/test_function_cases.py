"""torch's own cases of its functions, with normreg's in torch's place."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from cases_of_torch import assert_same_decisions, op_db, raised_by
from support.reference import assert_agrees

import normreg

PREFIX = "nn.functional."
OP_INFOS = {
    f"{info.name.removeprefix(PREFIX)}{info.variant_test_name and '-' + info.variant_test_name}": info
    for info in op_db
    if info.name.startswith(PREFIX) and info.name.removeprefix(PREFIX) in normreg.functional.__all__
}
DROPOUT_INFOS = {name: info for name, info in OP_INFOS.items() if "dropout" in name}
every_dropout = pytest.mark.parametrize("info", DROPOUT_INFOS.values(), ids=DROPOUT_INFOS)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def in_every_dtype(infos):
    """A test for each operation and each dtype that torch declares for it on this device."""
    return pytest.mark.parametrize(
        ("info", "dtype"),
        [
            pytest.param(info, dtype, id=f"{name}-{dtype}")
            for name, info in infos.items()
            for dtype in sorted(info.supported_dtypes(DEVICE), key=str)
        ],
    )


with_errors = pytest.mark.parametrize(
    "info", [pytest.param(i, id=name) for name, i in OP_INFOS.items() if i.error_inputs_func is not None]
)


def functions(info):
    name = info.name.removeprefix(PREFIX)
    return getattr(normreg.functional, name), getattr(F, name)


def is_random(info, sample):
    """Whether chance decides: dropouts, unless p or the mode is certain."""
    if "dropout" not in info.name:
        return False
    usual = inspect.signature(functions(info)[1]).parameters
    p, training = (sample.kwargs.get(name, usual[name].default) for name in ("p", "training"))
    return training and p not in (0.0, 1.0)


def samples(info, device, dtype):
    """(description, function of tensors for a library's function, those tensors), for each sample."""
    differentiable = dtype.is_floating_point or dtype.is_complex
    for number, sample in enumerate(info.sample_inputs(device, dtype, differentiable)):
        tensors = [sample.input, *sample.args, *sample.kwargs.values()]
        at = [i for i, value in enumerate(tensors) if isinstance(value, torch.Tensor)]

        def call(function, *given, sample=sample, tensors=tensors, at=at, **options):
            values = dict(enumerate(tensors)) | dict(zip(at, given))
            args = [values[i] for i in range(1 + len(sample.args))]
            kwargs = dict(zip(sample.kwargs, [*values.values()][len(args) :]))
            return function(*args, **kwargs, **options)

        yield f"sample {number}: {sample}", sample, call, [tensors[i] for i in at]


def detached(tensors):
    return [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]


def everything(call, function, tensors):
    """Output, gradients and the tensors themselves afterwards: buffers may have been updated."""
    given = detached(tensors)
    y = call(function, *given)
    leaves = [t for t in given if t.requires_grad]
    torch.manual_seed(1)
    grads = []
    if leaves:
        grads = torch.autograd.grad(y, leaves, torch.randn_like(y), allow_unused=True)
    return [y.detach(), *grads, *(t.detach() for t in given if not t.requires_grad)]


def test_every_function_has_cases():
    """torch has no case of dropout1d."""
    covered = {info.name.removeprefix(PREFIX) for info in OP_INFOS.values()}
    assert {name for name in normreg.functional.__all__ if hasattr(F, name)} - covered == {"dropout1d"}


@pytest.fixture
def two_threads():
    """Where two elements cancel, torch's error, by which ours is judged, depends on its threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


# once in a process
@pytest.mark.filterwarnings("ignore:dropout2d:UserWarning")
@in_every_dtype(OP_INFOS)
def test_function_samples(device, two_threads, info, dtype):
    """Every sample where chance does not decide."""
    ours, theirs = functions(info)
    for description, sample, call, tensors in samples(info, device, dtype):
        if not is_random(info, sample):
            try:
                assert_same_results(ours, theirs, call, tensors)
            except AssertionError as wrong:
                raise AssertionError(description) from wrong


def assert_same_results(ours, theirs, call, tensors):
    their = everything(call, theirs, tensors)
    exact = "dropout" in ours.__name__ or not tensors[0].is_floating_point()
    # float64 is what assert_agrees judges by, and it cannot where a result is not finite
    if exact or tensors[0].dtype == torch.float64 or any(t.isnan().any() for t in their):
        eps = torch.finfo(tensors[0].dtype).eps if tensors[0].is_floating_point() else 0.0
        tolerance = 0.0 if exact else 64 * eps
        for o, t in zip(everything(call, ours, tensors), their, strict=True):
            assert (o is None) == (t is None)
            if o is not None:
                assert o.stride() == t.stride()
                torch.testing.assert_close(o, t, rtol=tolerance, atol=tolerance, equal_nan=True)
        return
    buffers = []

    def of(function):
        """As a function of what has a gradient; the others may be updated, and are copied."""

        def compute(*differentiated):
            given = iter(differentiated)
            dtype = differentiated[0].dtype
            used = [next(given) if t.requires_grad else t.to(dtype, copy=True) for t in tensors]
            y = call(function, *used)
            buffers[:] = [t for t, original in zip(used, tensors) if not original.requires_grad]
            return y

        return compute

    differentiable = [t for t in tensors if t.requires_grad]
    assert_agrees(of(ours), of(theirs), differentiable)
    of(ours)(*differentiable)
    for o, t in zip(buffers, their[1 + len(differentiable) :], strict=True):
        torch.testing.assert_close(o, t, rtol=4 * torch.finfo(t.dtype).eps, atol=4 * torch.finfo(t.dtype).eps)


# once in a process
@pytest.mark.filterwarnings("ignore:dropout2d:UserWarning")
@in_every_dtype(DROPOUT_INFOS)
def test_random_samples(device, info, dtype):
    """Each element has one of torch's two values; those share a decision that share one in torch."""
    ours, theirs = functions(info)
    for description, sample, call, tensors in samples(info, device, dtype):
        if is_random(info, sample):
            x = tensors[0]
            # many masks for the small samples of one dtype; test_dropout_family.py has large ones
            all_pairs = dtype == torch.float32 and x.numel() < 200
            try:
                assert_same_decisions(ours, theirs, call, x, all_pairs)
            except AssertionError as wrong:
                raise AssertionError(description) from wrong


# once in a process
@pytest.mark.filterwarnings("ignore:dropout2d:UserWarning")
@in_every_dtype(DROPOUT_INFOS)
def test_function_samples_in_place(device, info, dtype):
    ours, theirs = functions(info)
    for description, sample, call, tensors in samples(info, device, dtype):
        outcomes = []
        for function in (theirs, ours):
            x = tensors[0].detach().clone()
            y = call(function, x, inplace=True)
            assert y is x or (y.data_ptr() == x.data_ptr() and y.shape == x.shape), description
            outcomes.append((y is x, y.dtype, y.stride(), y))
        their, our = outcomes
        assert our[:3] == their[:3], description
        if not is_random(info, sample):
            assert torch.equal(our[3], their[3]), description


@with_errors
def test_function_errors(device, info):
    for error in info.error_inputs(device):
        sample = error.sample_input
        theirs, ours = (
            raised_by(function, sample.input, *sample.args, **sample.kwargs)
            for function in functions(info)[::-1]
        )
        assert theirs is not None, sample
        assert ours == theirs

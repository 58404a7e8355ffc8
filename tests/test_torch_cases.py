"""torch's own test cases, with normreg's classes and functions in torch's place.

The cases are the entries of torch's `module_db` and `op_db`: an entry is found by its torch class or its
function's name, so that a layer added to `convert.COUNTERPARTS` and a function added to `functional` are
tested by torch's cases of them without a line here.
"""

import copy
import inspect
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from reference import assert_agrees, copies, leave_initial_values, run

import normreg
from normreg.models.replace import COUNTERPARTS

pytest.importorskip("expecttest", reason="torch's test cases cannot be imported without expecttest")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ImportWarning)  # hypothesis is not needed
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
    from torch.testing._internal.common_utils import noncontiguous_like
# the import forbids to set torch.backends' flags, for the whole process
torch.backends.__allow_nonbracketed_mutation_flag = True

# Modules.

MODULE_INFOS = {info.module_cls: info for info in module_db if info.module_cls in COUNTERPARTS}


def module_cases():
    for original, info in MODULE_INFOS.items():
        for training in (True, False) if info.train_and_eval_differ else (True,):
            cases = info.module_inputs_func(info, "cpu", torch.float32, False, training)
            for index, case in enumerate(cases):
                mode = ("train" if training else "eval",) * info.train_and_eval_differ
                name = "-".join([original.__name__, case.desc or str(index), *mode])
                yield pytest.param(original, index, training, id=name)


every_module_case = pytest.mark.parametrize(("original", "index", "training"), [*module_cases()])


def modules_and_input(original, index, training, device, dtype=torch.float32):
    """torch's module of a case in another state than the initial one, normreg's in the same, the input."""
    info = MODULE_INFOS[original]
    case = info.module_inputs_func(info, device, dtype, True, training)[index]
    arguments, options = case.constructor_input.args, case.constructor_input.kwargs
    theirs, ours = (
        cls(*arguments, **options).to(device, dtype) for cls in (original, COUNTERPARTS[original])
    )
    leave_initial_values(theirs)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    (x,) = [*case.forward_input.args, *case.forward_input.kwargs.values()]
    return theirs.train(training), ours.train(training), x


def as_function(module):
    """The module as a function of (input, *parameters), whose buffers stay as they are."""
    names = [name for name, _ in module.named_parameters()]

    def function(x, *parameters):
        twin = copy.deepcopy(module).to(x.dtype)
        for name, parameter in zip(names, parameters):
            twin._parameters[name] = parameter
        return twin(x)

    return function


def test_every_class_has_cases():
    """torch's module_db knows no dropout, whose cases are below, and no SyncBatchNorm."""
    without = {original.__name__ for original in COUNTERPARTS if original not in MODULE_INFOS}
    dropouts = {original.__name__ for original in COUNTERPARTS if "Dropout" in original.__name__}
    assert without == {*dropouts, "SyncBatchNorm"}


@pytest.mark.some(25)
@every_module_case
def test_module_results_and_gradients(device, launches, original, index, training):
    theirs, ours, x = modules_and_input(original, index, training, device)
    assert_agrees(as_function(ours), as_function(theirs), [x, *theirs.parameters()])
    assert bool(launches) == (x.numel() > 0)


@pytest.mark.some(25)
@every_module_case
def test_module_in_use(device, original, index, training):
    """Two batches, then backward: results, gradients, running statistics and their count, in float64."""
    theirs, ours, x = modules_and_input(original, index, training, device, torch.float64)
    results, w = [], torch.randn_like(x)
    for module in (theirs, ours):
        batches = copies([x, x * 2 + 1])
        total = sum((module(batch) * w).sum() for batch in batches)
        grads = torch.autograd.grad(total, [*batches, *module.parameters()])
        results.append({"sum": total, **dict(enumerate(grads)), **module.state_dict()})
    assert list(results[1]) == list(results[0])
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.some(25)
@every_module_case
def test_module_second_derivatives(device, original, index, training):
    """In float64, where both round below 1e-12; the sums of squares make every derivative enter."""
    theirs, ours, x = modules_and_input(original, index, training, device, torch.float64)
    results, w = [], torch.randn_like(x)
    for module in (theirs, ours):
        inputs = copies([x, *module.parameters()])
        y = as_function(module)(*inputs)
        first = torch.autograd.grad((y * w).square().sum(), inputs, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    for our, their in zip(*reversed(results), strict=True):
        scale = their.abs().max().item() if their.numel() else 0.0
        torch.testing.assert_close(our, their, rtol=0, atol=1e-10 * scale)


@pytest.mark.some(25)
@every_module_case
def test_module_layouts(device, original, index, training):
    """Inputs and incoming gradients with gaps, channels-last ones: values and strides are torch's."""
    theirs, ours, x = modules_and_input(original, index, training, device)
    inputs = [noncontiguous_like(x.detach()).requires_grad_()]
    if x.dim() in (4, 5):
        last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        inputs.append(x.detach().contiguous(memory_format=last).requires_grad_())
    for given in inputs:
        dy = noncontiguous_like(torch.randn_like(x))
        arguments = [given, *theirs.parameters()]
        our, their = (run(as_function(module), arguments, dy) for module in (ours, theirs))
        for o, t in zip(our, their, strict=True):
            torch.testing.assert_close(o, t, rtol=1e-4, atol=1e-5)
        assert our[0].stride() == their[0].stride()


def construct(cls, case, **options):
    torch.manual_seed(1)
    return cls(*case.constructor_input.args, **case.constructor_input.kwargs, **options)


def state_of(module):
    """What of a module is not a value: names, shapes, dtypes, devices, flags, version."""
    return [
        (name, type(t), t.shape, t.dtype, t.device, t.requires_grad)
        for name, t in [*module.named_parameters(), *module.named_buffers()]
    ], module.state_dict()._metadata


def assert_same_module(ours, theirs):
    assert repr(ours) == repr(theirs)
    assert state_of(ours) == state_of(theirs)
    assert ours.training == theirs.training
    public = {name for name in vars(theirs) if not name.startswith("_")}
    assert {name for name in vars(ours) if not name.startswith("_")} == public
    for name in public:
        if not isinstance(getattr(theirs, name), torch.Tensor):
            assert getattr(ours, name) == getattr(theirs, name)
    for name, expected in theirs.state_dict().items():
        assert expected.is_meta or torch.equal(ours.state_dict()[name], expected), name


@pytest.mark.some(25)
@every_module_case
def test_module_construction(device, original, index, training):
    """Initial values, device= and dtype=, the device context, meta and to_empty, repr."""
    info, cls = MODULE_INFOS[original], COUNTERPARTS[original]
    case = info.module_inputs_func(info, device, torch.float32, False, training)[index]
    assert_same_module(construct(cls, case), construct(original, case))
    for options in (
        dict(device=device),
        dict(dtype=torch.float64),
        dict(device="meta", dtype=torch.bfloat16),
    ):
        assert_same_module(construct(cls, case, **options), construct(original, case, **options))
    with torch.device("meta"):
        ours, theirs = construct(cls, case), construct(original, case)
    assert_same_module(ours, theirs)
    x = torch.empty_like(case.forward_input.args[0], device="meta")
    # a cumulative average reads the count of its batches, which no tensor on meta has
    raised, expected = (raised_by(module.train(training), x) for module in (ours, theirs))
    assert raised == expected
    assert raised is None or "momentum=None" in repr(ours)
    for module in (ours, theirs):
        module.to_empty(device=device)
        torch.manual_seed(1)
        module.reset_parameters()
    assert_same_module(ours, theirs)
    for convert in (torch.nn.Module.double, torch.nn.Module.half, torch.nn.Module.requires_grad_):
        assert_same_module(convert(construct(cls, case)), convert(construct(original, case)))


@pytest.mark.some(25)
@every_module_case
def test_module_copies(device, original, index, training):
    """Pickled and deep-copied modules, and a state_dict in either direction."""
    theirs, ours, x = modules_and_input(original, index, training, device)
    twins = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    y = ours(x)
    for twin in twins:
        assert type(twin) is COUNTERPARTS[original]
        assert torch.equal(twin(x), y)
        assert_same_module(twin, ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert_same_module(ours, theirs)


def module_error_cases():
    for original, info in MODULE_INFOS.items():
        if info.module_error_inputs_func is not None:
            cases = info.module_error_inputs_func(info, "cpu", torch.float32, False, True)
            for index in range(len(cases)):
                yield pytest.param(original, index, id=f"{original.__name__}-{index}")


def raised_by(call, *arguments, **options):
    """(type, message) of the exception, or None."""
    try:
        call(*arguments, **options)
    except Exception as raised:
        return type(raised), str(raised)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("original", "index"), [*module_error_cases()])
def test_module_errors(device, original, index, training):
    info = MODULE_INFOS[original]
    error = info.module_error_inputs_func(info, device, torch.float32, False, training)[index]
    case, outcomes = error.module_error_input, []
    for cls in (original, COUNTERPARTS[original]):
        outcome = raised_by(construct, cls, case)
        if error.error_on is not ModuleErrorEnum.CONSTRUCTION_ERROR:
            assert outcome is None
            module = construct(cls, case).to(device).train(training)
            outcome = raised_by(module, *case.forward_input.args, **case.forward_input.kwargs)
        outcomes.append(outcome)
    theirs, ours = outcomes
    assert theirs is not None or not training  # torch's own test trains
    if theirs is not None:
        assert ours == theirs


# Functions.

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


SEEDS = 24  # two of 25 independent decisions agree in all of them once in 50,000 cases


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


def outcomes(call, function, x, seeds):
    """Outputs and gradients under `seeds` masks, in float64 and a row each; a complex number is two."""
    torch.manual_seed(5)
    results = []
    for _ in range(seeds):
        leaf = x.detach().clone().requires_grad_()
        y = call(function, leaf)
        assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride())
        dy = torch.full_like(y, 1 + 1j if y.is_complex() else 1)
        results.append((y.detach(), *torch.autograd.grad(y, leaf, dy)))
    return [torch.stack([parts(t).double().flatten() for t in column]) for column in zip(*results)]


def parts(t):
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def assert_same_decisions(ours, theirs, call, x, all_pairs=False):
    their_y, their_dx = outcomes(call, theirs, x, SEEDS)
    our_y, our_dx = outcomes(call, ours, x, SEEDS if all_pairs else 2)
    kept, their_kept = our_dx != 0, their_dx != 0
    assert (their_kept.any(0) & ~their_kept.all(0)).all(), "torch was seen to do both with every element"
    of_kept = torch.where(their_kept, their_y, -math.inf).amax(0)
    of_dropped = torch.where(their_kept, -math.inf, their_y).amax(0)
    # one rounding each, of terms of the size of the output or, in alpha dropout, of its shift
    tolerance = 2 * torch.finfo(x.dtype).eps * their_y.abs().max()
    torch.testing.assert_close(our_y, torch.where(kept, of_kept, of_dropped), rtol=0, atol=tolerance)
    torch.testing.assert_close(our_dx, kept * their_dx.max(), rtol=0, atol=2 * tolerance)
    together, theirs_together = groups(kept), groups(their_kept)
    assert (together >= theirs_together).all(), "elements that share a decision in torch"
    if all_pairs:
        assert torch.equal(together, theirs_together)


def groups(kept):
    """Which pairs of elements are always kept together."""
    return (kept[:, :, None] == kept[:, None, :]).all(0)


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


# The dropouts as modules, of which torch's module_db has none.

DROPOUTS = {
    "Dropout": [(), (5, 5)], "Dropout1d": [(5, 5), (4, 5, 5)], "Dropout2d": [(4, 5, 3, 3)],
    "Dropout3d": [(5, 3, 3, 3), (4, 5, 3, 3, 3)], "AlphaDropout": [(), (5, 5)],
    "FeatureAlphaDropout": [(4, 5, 3), (4, 5, 3, 3)],
}  # fmt: skip


def test_every_dropout_is_below():
    others = {"SyncBatchNorm", *(original.__name__ for original in MODULE_INFOS)}
    assert set(DROPOUTS) == {original.__name__ for original in COUNTERPARTS} - others


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "inplace"])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_modules(device, name, p, inplace, training):
    ours, theirs = (getattr(library, name)(p, inplace).train(training) for library in (normreg, torch.nn))
    assert_same_module(ours, theirs)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is getattr(normreg, name)
        assert_same_module(twin, theirs)
    for shape in DROPOUTS[name]:
        x = torch.randn(shape, device=device)
        assert theirs(x.to("meta")).shape == ours(x.to("meta")).shape == x.shape
        empty = torch.empty((0, *shape[1:]), device=device)
        assert theirs(empty).shape == ours(empty).shape
        results = [module(x.clone()) for module in (ours, theirs)]
        assert results[0].stride() == results[1].stride()
        if training and p == 0.5:

            def call(module, leaf):
                return module(leaf * 1)

            assert_same_decisions(ours, theirs, call, x)
        else:
            assert torch.equal(*results)

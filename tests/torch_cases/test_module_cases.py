"""torch's own cases of its modules, with normreg's classes in torch's place."""

import copy
import pickle

import pytest
import torch
from cases_of_torch import (
    MODULE_INFOS,
    ModuleErrorEnum,
    assert_same_module,
    noncontiguous_like,
    raised_by,
)
from support.reference import assert_agrees, copies, leave_initial_values, run

from normreg.models.registry import COUNTERPARTS


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

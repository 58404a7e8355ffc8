"""Function transforms, tensor subclasses, tracing: torch's operators, or what they would return."""

import copy
import math

import formulas
import pytest
import torch
from operations import LIBRARIES, OURS, every_kind, torch_layer
from outcomes import (
    DISPATCHED,
    NO_REASON,
    Tagged,
    assert_same_outcome,
    every_operation,
    nested_is_a_prototype,
    outcome,
    reasons,
    shape_of,
)
from support.reference import error, unit
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import normreg

# also used by torch's own decompositions for forward-mode differentiation
torchscript_is_deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.")
# which ask torch's dropout whether p is a probability, or tensors for sizes, by calls that a trace keeps
ASK = (
    *("dropout_add", "dropout_add_layer_norm", "dropout_add_rms_norm", "bias_act_dropout"),
    *("ada_layer_norm", "ada_rms_norm"),
)


def of_both(call):
    """`call(library)` of torch's functions and ours, with the same random numbers."""
    results = []
    for library in LIBRARIES.values():
        torch.manual_seed(3)
        results.append(call(library))
    return results


def both(operation, transform, *arguments):
    return of_both(lambda library: transform(function(operation, library), *arguments))


def function(operation, library):
    """A function of x alone: the residual and the parameters are the same every time."""
    row = DISPATCHED[operation]

    def call(x):
        like = dict(dtype=x.dtype, device=x.device)
        others = (torch.linspace(0.5, 2, math.prod(s), **like).view(s) for s in row.shapes[1:])
        return row(library, x, *others)

    return call


def dual_numbers(f, x, tangent):
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(f(forward_ad.make_dual(x, tangent))))


TRANSFORMS = {
    "vmap": lambda f, x, t: torch.func.vmap(f, randomness="different")(torch.stack([x, t])),
    "grad": lambda f, x, t: torch.func.grad(lambda x: f(x).square().sum())(x),
    "vjp": lambda f, x, t: torch.func.vjp(f, x)[1](t)[0],
    "jvp": lambda f, x, t: torch.func.jvp(f, (x,), (t,)),
    "forward AD": dual_numbers,
    "per-sample gradients": lambda f, x, t: torch.func.vmap(
        torch.func.grad(lambda x: f(x).square().sum()), randomness="different"
    )(torch.stack([x, t])),
    "functionalize": lambda f, x, t: torch.func.functionalize(f)(x),
}


@pytest.mark.place("torch.func")
@torchscript_is_deprecated
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@every_operation
def test_function_transforms(device, launches, operation, transform):
    x, tangent = torch.randn(2, *shape_of(operation), device=device)
    theirs, ours = both(operation, lambda f, *given: outcome(transform, f, *given), x, tangent)
    if device.type == "cuda" and isinstance(theirs, Exception):  # its operators there have no formula for it
        assert_same_outcome(ours, theirs)
        return
    for our, their in zip(*((r if isinstance(r, tuple) else (r,)) for r in (ours, theirs)), strict=True):
        assert torch.equal(our, their)
        assert our.abs().max() > 0
    assert launches == []


@torchscript_is_deprecated
def test_after_a_transform_the_kernel_is_back(device, launches):
    x, tangent = torch.randn(2, *shape_of("layer_norm"), device=device)
    both("layer_norm", dual_numbers, x, tangent)
    both("layer_norm", TRANSFORMS["vmap"], x, tangent)
    assert reasons(torch.randn(3, 4, 4, device=device)) == NO_REASON


@pytest.mark.parametrize("grad", [True, False])
@every_operation
def test_a_tensor_that_escaped_from_a_transform(device, operation, grad):
    """The tensor is of type torch.Tensor and without memory; torch's operators unwrap it."""
    escaped = []
    torch.func.grad(lambda x: (escaped.append(2 * x), x.sum())[1])(
        torch.randn(shape_of(operation), device=device)
    )
    with torch.set_grad_enabled(grad):
        theirs, ours = both(operation, lambda f: f(escaped[0]))
    torch.testing.assert_close(ours, theirs)


def test_a_parameter_that_escaped_from_a_transform(device, launches):
    x, weight, escaped = torch.randn(3, 4, device=device), torch.randn(4, device=device), []
    torch.func.grad(lambda w: (escaped.append(2 * w), w.sum())[1])(weight)
    with torch.no_grad():
        theirs, ours = of_both(lambda library: library.layer_norm(x, (4,), escaped[0]))
    assert torch.equal(ours, theirs)
    assert launches == []


@every_operation
def test_tensor_subclass(device, launches, operation):
    x = torch.randn(shape_of(operation), device=device).as_subclass(Tagged)
    theirs, ours = both(operation, lambda f: f(x))
    assert type(ours) is Tagged
    assert torch.equal(ours, theirs)
    assert launches == []


class Recorder(TorchDispatchMode):
    """Notes what is computed of tensors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(isinstance(given, torch.Tensor) for given in args):
            self.calls.append(function)
        return function(*args, **(kwargs or {}))


@every_operation
def test_dispatch_modes_see_torchs_operators(device, launches, operation):
    def recorded(f):
        with Recorder() as recorder:
            y = f(x)
        return y, recorder.calls

    x = torch.randn(shape_of(operation), device=device)
    (theirs, their_calls), (ours, our_calls) = both(operation, recorded)
    assert torch.equal(ours, theirs)
    assert our_calls == their_calls
    assert len(our_calls) > 0
    assert launches == []


@every_operation
def test_make_fx(device, launches, operation):
    x, other = torch.randn(2, *shape_of(operation), device=device)

    def traced(f):
        graph = make_fx(f)(x)
        torch.manual_seed(4)
        return graph.code, graph(other)

    (their_code, theirs), (our_code, ours) = both(operation, traced)
    assert our_code == their_code
    assert torch.equal(ours, theirs)
    assert launches == []


@every_operation
def test_fake_tensors(device, launches, operation):
    def faked(f):
        with FakeTensorMode():
            dtype = torch.float16 if "drop" in operation else None
            return f(torch.empty(shape_of(operation), device=device, dtype=dtype))

    theirs, ours = both(operation, faked)
    assert type(ours) is FakeTensor
    assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
    assert launches == []


def ramps(x):
    return torch.linspace(0.5, 2, 4, device=x.device), torch.linspace(-1, 1, 4, device=x.device)


@nested_is_a_prototype
@pytest.mark.parametrize(
    ("call", "layout"),
    [
        (lambda library, x: library.layer_norm(x, (4,), *ramps(x)), torch.strided),
        (lambda library, x: library.layer_norm(x, (4,), *ramps(x)), torch.jagged),
        (lambda library, x: library.rms_norm(x, (4,), ramps(x)[0]), torch.jagged),
        (lambda library, x: library.dropout(x, 0.4), torch.strided),
        (lambda library, x: library.dropout(x, 0.4), torch.jagged),
    ],
    ids=["layer_norm-strided", "layer_norm-jagged", "rms_norm-jagged", "dropout-strided", "dropout-jagged"],
)
def test_nested_tensors(device, launches, call, layout):
    x = torch.nested.nested_tensor([torch.randn(n, 4, device=device) for n in (2, 3)], layout=layout)
    theirs, ours = of_both(lambda library: call(library, x))
    for our, their in zip(ours.unbind(), theirs.unbind(), strict=True):
        assert torch.equal(our, their)
    assert launches == []


@every_operation
def test_lazily_negated_tensors(device, operation):
    """Their memory holds the opposite of their values."""
    x = torch.rand(shape_of(operation), device=device) + 1
    torch.manual_seed(3)
    y = function(operation, OURS)(torch._neg_view(x)).resolve_neg()
    torch.manual_seed(3)
    expected = function(operation, formulas)(-x)
    # a sum of six or four is in another order
    assert error(y, expected.double()) <= 4 * unit(expected, torch.float32)


# torch's own batch_norm compares sizes in Python
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torchscript_is_deprecated
@every_operation
def test_jit_trace(device, launches, operation):
    x, other = torch.randn(2, *shape_of(operation), device=device)

    def traced(f):
        graph = torch.jit.trace(f, x, check_trace=False)
        torch.manual_seed(4)
        return str(graph.inlined_graph).count("aten::"), graph(other)

    (their_nodes, theirs), (our_nodes, ours) = both(operation, traced)
    assert our_nodes == their_nodes or operation in ASK
    assert torch.equal(ours, theirs)
    assert launches == []


@every_kind
def test_models_that_become_graphs(device, kind):
    layer, x = torch_layer(kind, device)
    plain = torch.nn.Sequential(layer).eval()
    replaced = copy.deepcopy(plain)
    normreg.replace(replaced)
    y, expected = torch.fx.symbolic_trace(replaced)(x), torch.fx.symbolic_trace(plain)(x)
    # both are rounded, and torch's reciprocal of a root is approximate on a GPU
    assert error(y, expected.double()) <= 4 * unit(expected, torch.float32)

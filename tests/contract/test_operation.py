"""What `Operation` makes of a declaration: operators, gradients of both orders, and the choice of path."""

from collections.abc import Sequence

import pytest
import torch
from saved import saved_by
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from normreg.ops import operation
from normreg.ops.operation import Operation, Operator, Seed


@pytest.fixture(autouse=True)
def guarded_memory():
    """Not here: opcheck compares storage offsets, which are not 0 between guard bands."""


@pytest.fixture(scope="module")
def library():
    """Operators of these tests are not among normreg's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operation, "LIBRARY", torch.library.Library("normreg_tests", "DEF"))
        yield


# y = weight x^power, of which slope = power x^(power - 1) is kept


def run(x: Tensor, weight: Tensor, power: float, save: bool) -> tuple[Tensor, Tensor | None]:
    return weight * x**power, power * x ** (power - 1) if save else None


def run_backward(dy: Tensor, x: Tensor, weight: Tensor, slope: Tensor, power: float, wanted: Sequence[bool]):
    want_dx, want_dweight = wanted
    return dy * weight * slope if want_dx else None, (dy * x**power).sum() if want_dweight else None


def fake(x, save):
    return torch.empty_like(x), torch.empty_like(x) if save else None


def fake_backward(x, weight, wanted):
    return tuple(torch.empty_like(t) if want else None for t, want in zip((x, weight), wanted))


def formula(dy, x, weight, power):
    return dy * weight * power * x ** (power - 1), (dy * x**power).sum()


@pytest.fixture(scope="module")
def backward(library):
    return Operator("power_backward", run_backward, fake_backward, ("dx", "dweight"), everywhere=True)


@pytest.fixture(scope="module")
def power(backward):
    return Operation("power", run, fake, ("y", "slope"), backward, formula, gradients=2, everywhere=True)


@pytest.fixture
def inputs(device):
    x = torch.rand(3, 4, device=device, dtype=torch.float64) + 0.5
    return x.requires_grad_(), torch.tensor(2.0, device=device, dtype=torch.float64, requires_grad=True)


def test_schemas(power, backward):
    assert [str(each.operator._schema) for each in (power, backward)] == [
        "normreg_tests::power(Tensor x, Tensor weight, float power, bool save) -> (Tensor y, Tensor slope)",
        "normreg_tests::power_backward(Tensor dy, Tensor x, Tensor weight, Tensor slope, float power, "
        "bool[] wanted) -> (Tensor dx, Tensor dweight)",
    ]


# torch's own look at the arguments it makes; it hides the warning, but not where warnings are errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_operators(power, backward, inputs):
    opcheck(power.operator, (*inputs, 3.0, True))
    x, weight = (t.detach() for t in inputs)
    opcheck(power.operator, (x, weight, 3.0, False))
    opcheck(backward.operator, (x, x, weight, x, 3.0, [False, True]))


def test_gradients(power, inputs):
    def call(x, weight):
        return power(x, weight, 3.0)

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)
    y = call(*inputs)
    dys = torch.randn(2, *y.shape, device=y.device, dtype=y.dtype)
    batched = torch.autograd.grad(y, inputs, dys, retain_graph=True, is_grads_batched=True)
    single = [torch.autograd.grad(y, inputs, dy, retain_graph=True) for dy in dys]
    torch.testing.assert_close(batched, tuple(map(torch.stack, zip(*single))))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(power, inputs, backend):
    def step(x, weight):
        return power(x.sin(), weight, 3.0).cos()

    torch._dynamo.reset()
    graphs = []

    def noting(graph, example_inputs):
        graphs.extend(str(node.target) for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend(backend)(graph, example_inputs)

    results = []
    for call in (step, torch.compile(step, backend=noting, fullgraph=True)):
        y = call(*inputs)
        results.append([y, *torch.autograd.grad(y.sum(), inputs)])
    torch.testing.assert_close(*results)
    assert "normreg_tests.power.default" in graphs


def test_what_is_kept(power, inputs):
    x, weight = inputs
    y, saved = saved_by(lambda: power(x, weight, 3.0))
    assert isinstance(y, Tensor)
    kept_x, kept_weight, slope = saved
    assert kept_x is x
    assert kept_weight is weight
    torch.testing.assert_close(slope, 3 * x**2)


def test_paths(power, inputs, monkeypatch):
    """The Function where autograd records, else what it runs, told that there is no backward."""
    x, weight = inputs
    assert type(power(x, weight, 3.0).grad_fn) is power.function._backward_cls
    asked = []
    monkeypatch.setattr(power, "run", lambda *values: asked.append(values[-1]) or run(*values))
    with torch.no_grad():
        assert power(x, weight, 3.0).grad_fn is None
    assert power(x.detach(), weight.detach(), 3.0).grad_fn is None
    assert asked == [False, False]
    with FakeTensorMode() as mode:
        y = power(mode.from_tensor(x), mode.from_tensor(weight), 3.0)
    assert (y.shape, len(asked)) == (x.shape, 2)


# y = scale x + seed and z = 2 x, and a count of calls


def run_counting(
    x: Tensor, scale: Tensor | None, count: Tensor, seed: Seed | None
) -> tuple[Tensor, Tensor, Tensor]:
    count += 1
    y = x.clone() if scale is None else x * scale
    return y if seed is None else y + seed, 2 * x, x > 0


@pytest.fixture(scope="module")
def given():
    return []


@pytest.fixture(scope="module")
def counting(library, given):
    def gradients(dy, dz, x, scale, seed, scale_dtype, factor, wanted):
        given[:] = dy, dz, x, scale, seed, scale_dtype, factor, wanted
        dx = 0 if dy is None else dy if scale is None else dy * scale
        dx = dx if dz is None else dx + factor * dz
        return dx, (dy * x).sum() if wanted[1] and dy is not None else None

    return Operation(
        "counting",
        run_counting,
        lambda x: (torch.empty_like(x), torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)),
        ("y", "z", "positive"),
        gradients,
        gradients=2,
        differentiable=2,
        returned=3,
        dtypes={"scale_dtype": ("scale", "x")},
        constants={"factor": 2.0},
        keep={"x": lambda x, scale: None if scale is None else x},
        mutates=("count",),
        everywhere=True,
    )


def test_what_a_backward_is_given(counting, given, inputs):
    x, scale = inputs[0].detach(), inputs[1]
    count = torch.zeros((), device=x.device)
    y, _, positive = counting(x, scale, count, 5)
    assert not positive.requires_grad
    y.sum().backward()
    dy, dz, kept_x, kept_scale, *others = given
    assert torch.equal(dy, torch.ones_like(y))
    assert dz is None
    assert kept_x is x
    assert kept_scale is scale
    assert others == [5, torch.float64, 2.0, (False, True)]

    _, z, _ = counting(x.float().requires_grad_(), None, count, None)
    z.sum().backward()
    assert (*given[:1], *given[2:]) == (None, None, None, None, torch.float32, 2.0, (True, False))
    assert count == 2


def test_a_seed_in_memory_is_kept_as_a_tensor(counting, given, inputs):
    x, scale = inputs
    seed = torch.tensor(5, device=x.device)
    (y, _, _), saved = saved_by(lambda: counting(x, scale, torch.zeros((), device=x.device), seed))
    assert saved[-1] is seed
    y.sum().backward()
    assert given[4] is seed


def test_arguments_that_are_changed(counting, inputs):
    x, scale = inputs
    assert "Tensor(a2!) count, Tensor? seed" in str(counting.operator._schema)
    torch._dynamo.reset()
    count = torch.zeros((), device=x.device)
    seed = torch.tensor(5, device=x.device)
    step = torch.compile(lambda *inputs: counting(*inputs)[:2], backend="aot_eager", fullgraph=True)
    for _ in range(2):
        y, z = step(x, scale, count, seed)
    assert count == 2
    torch.testing.assert_close(y, x * scale + 5)
    ours = torch.autograd.grad((y * z).sum(), (x, scale))
    theirs = torch.autograd.grad(((x * scale + 5) * 2 * x).sum(), (x, scale))
    torch.testing.assert_close(ours, theirs)

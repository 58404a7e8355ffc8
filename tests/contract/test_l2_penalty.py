"""L2 penalty: against float64, against the optimizers' weight_decay, and what it refuses."""

import pytest
import torch
from support.reference import assert_derivatives

import normreg
from normreg.training import l2_penalty as module

CHUNK = 2**16  # elements of a tensor that torch's foreach operators give to one block of a GPU
# below one vector and next to a chunk
SIZES = (1, 3, 17, 129, 1000, 2047, 2048, 2049, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# a rounding of the squares to float32 and one of the result; as many additions as a tree has levels
RTOL = {torch.float32: 2 * 2**-24, torch.float64: 64 * 2**-53}
# a rounding to the dtype of the gradient, one of the scale to float32
GRADIENT_RTOL = {dtype: 2 * torch.finfo(dtype).eps for dtype in DTYPES}


def parameters(device, *dtypes, sizes=SIZES):
    return [
        torch.randn(size, device=device).to(dtypes[i % len(dtypes)]).requires_grad_()
        for i, size in enumerate(sizes)
    ]


def exact(tensors, weight_decay):
    return weight_decay / 2 * sum(w.detach().double().square().sum() for w in tensors)


def assert_is_penalty(tensors, weight_decay=0.3, dy=1.7):
    """Value and gradients against float64."""
    y = normreg.l2_penalty(tensors, weight_decay)
    wide = any(w.dtype == torch.float64 for w in tensors)
    assert (y.shape, y.dtype) == ((), torch.float64 if wide else torch.float32)
    rtol = RTOL[torch.float32 if any(w.dtype != torch.float64 for w in tensors) else torch.float64]
    torch.testing.assert_close(y.double(), exact(tensors, weight_decay), rtol=rtol, atol=0)
    gradients = torch.autograd.grad(y, tensors, torch.tensor(dy, dtype=y.dtype, device=y.device))
    for w, dw in zip(tensors, gradients, strict=True):
        assert (dw.shape, dw.dtype) == (w.shape, w.dtype)
        expected = w.detach().double() * dy * weight_decay
        tiny = torch.finfo(w.dtype).smallest_normal
        torch.testing.assert_close(dw.double(), expected, rtol=GRADIENT_RTOL[w.dtype], atol=tiny)
    return y, gradients


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_penalty_of_every_dtype(device, dtype):
    assert_is_penalty(parameters(device, dtype))


@pytest.mark.parametrize("dtypes", [DTYPES, DTYPES[:3]], ids=["with float64", "without"])
def test_penalty_of_mixed_dtypes(device, dtypes):
    assert_is_penalty(parameters(device, *dtypes))


def test_more_tensors_than_one_launch_takes(device):
    assert_is_penalty(parameters(device, torch.float32, sizes=[1 + i % 3 for i in range(1001)]))


def test_addresses_that_are_no_multiples_of_16_bytes(device):
    """At which a GPU's 16-byte accesses are errors."""
    w = torch.randn(5000, device=device)
    assert_is_penalty([t.detach().requires_grad_() for t in (w, w[1:], w[4:])])


def test_squares_of_float16_do_not_overflow(device):
    w = torch.full((5000,), 60000.0, dtype=torch.float16, device=device, requires_grad=True)
    assert_is_penalty([w], weight_decay=1e-6, dy=1.0)


def test_layouts(device, guarded_memory):
    """Dense ones as they lie, with gradients that lie alike; the elements beside the others count nothing."""
    image = torch.randn(3, 4, 5, 6, device=device)
    tensors = [
        torch.randn(7, 9, device=device).t(),
        image.contiguous(memory_format=torch.channels_last),
        guarded_memory.place(torch.randn(1001, device=device))[1:],  # at no multiple of 16 bytes
        torch.randn(20, 30, device=device)[3:9, ::2],
        torch.randn(4, 1, device=device).expand(4, 5),
        torch.randn((), device=device),
        torch.randn(0, 3, device=device),
    ]
    tensors = [w.detach().requires_grad_() for w in tensors]
    _, gradients = assert_is_penalty(tensors)
    assert [dw.stride() for dw in gradients[:2]] == [w.stride() for w in tensors[:2]]


def test_nothing_but_empty_tensors(device):
    empty = torch.randn(0, 3, device=device, requires_grad=True)
    y = normreg.l2_penalty([empty, empty], 0.1)
    y.backward()
    assert y.item() == 0
    assert empty.grad.shape == (0, 3)


def test_the_same_at_every_call_whatever_the_addresses(device):
    tensors = parameters(device, *DTYPES)
    moved = [torch.cat([torch.zeros_like(w[:1]), w])[1:].detach() for w in tensors]
    results = {normreg.l2_penalty(ws, 0.1).item() for ws in (tensors, tensors, moved)}
    assert len(results) == 1


def test_gradients_that_are_not_wanted(device):
    frozen, trained = torch.randn(2, 300, device=device)
    trained.requires_grad_()
    y = normreg.l2_penalty([frozen, trained], 0.5)
    y.backward()
    torch.testing.assert_close(y.double(), exact([frozen, trained], 0.5), rtol=RTOL[torch.float32], atol=0)
    assert torch.equal(trained.grad, 0.5 * trained.detach())
    assert not normreg.l2_penalty([frozen], 0.5).requires_grad


def test_derivatives(device, thorough):
    tensors = [
        torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in ((2, 3), (), (4,))
    ]
    tensors.append(torch.zeros(2, dtype=torch.float64, device=device, requires_grad=True))
    for order in (1, 2):
        assert_derivatives(lambda *ws: normreg.l2_penalty(ws, 0.3), tensors, thorough, order)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_second_derivatives(device, dtype):
    """(0.3 w)^2 differentiated; in the dtype's own rounding twice."""
    w = torch.randn(50, device=device).to(dtype).requires_grad_()
    (dw,) = torch.autograd.grad(normreg.l2_penalty([w], 0.3), w, create_graph=True)
    (second,) = torch.autograd.grad(dw.double().square().sum(), w)
    assert dw.dtype == second.dtype == dtype
    expected = 2 * 0.3**2 * w.detach().double()
    torch.testing.assert_close(second.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def test_batched_gradients(device):
    w = torch.randn(5, device=device, requires_grad=True)
    dy = torch.tensor([1.0, 2.0, -3.0], device=device)
    (dw,) = torch.autograd.grad(normreg.l2_penalty([w], 0.5), w, dy, is_grads_batched=True)
    torch.testing.assert_close(dw, 0.5 * dy[:, None] * w.detach())


def test_a_changed_parameter_is_seen(device):
    w = torch.randn(5, device=device, requires_grad=True)
    y = normreg.l2_penalty([w], 0.5)
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


# Where transforms, compilers and unusual tensors need other operators.


def test_the_formula_agrees(device):
    tensors = parameters(device, *DTYPES, sizes=(1, 3, 50))
    results = [module._penalty(tensors, 0.3, False), normreg.l2_penalty(tensors, 0.3)]
    torch.testing.assert_close(*results, rtol=RTOL[torch.float32], atol=0)
    gradients = [torch.autograd.grad(y, tensors) for y in results]
    for w, their, our in zip(tensors, *gradients, strict=True):
        torch.testing.assert_close(our, their, rtol=GRADIENT_RTOL[w.dtype], atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_and_squares_agree(device, dtype):
    """A CPU takes these and a GPU those; float32 sums of so many would be wrong in the third digit."""
    tensors = [torch.full((2**22,), 0.1, device=device).to(dtype), torch.zeros(0, device=device)]
    expected = 2**21 * tensors[0][0].double().square().item()
    for in_foreach in (False, True):
        y = module._penalty(tensors, 1.0, in_foreach)
        assert y.item() == pytest.approx(expected, rel=2 * 2**-24, abs=0)


UNUSUAL = {"sparse": torch.eye(3).to_sparse(), "meta": torch.ones(3, device="meta")}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_tensors(kind):
    tensor = UNUSUAL[kind].clone()
    y = normreg.l2_penalty([tensor.requires_grad_()], 2.0)
    y.backward()
    assert (tensor.grad.layout, tensor.grad.shape) == (tensor.layout, tensor.shape)
    assert y.is_meta or y.item() == 3


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_to_one_graph(device, backend):
    torch._dynamo.reset()
    layer = torch.nn.Linear(3, 4).to(device)

    def loss(x):
        return layer(x).square().sum() + normreg.l2_penalty(layer.parameters(), 0.3)

    x = torch.randn(2, 3, device=device)
    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    results = []
    for call in (compiled, loss):
        y = call(x)
        results.append([y, *torch.autograd.grad(y, [*layer.parameters()])])
    torch.testing.assert_close(*results)
    torch._dynamo.reset()


# torch's own decompositions for forward-mode differentiation
@pytest.mark.filterwarnings("ignore:`torch.jit.")
def test_transforms(device):
    w = torch.randn(5, device=device)
    assert torch.allclose(torch.func.grad(lambda w: normreg.l2_penalty([w], 0.5))(w), 0.5 * w)
    tangent = torch.func.jvp(lambda w: normreg.l2_penalty([w], 0.5), (w,), (w,))[1]
    assert torch.allclose(tangent, 0.5 * w.square().sum())
    hessian = torch.func.hessian(lambda w: normreg.l2_penalty([w], 0.5))(w)
    assert torch.allclose(hessian, 0.5 * torch.eye(5, device=device))


# Weight decay of the optimizers.


def weights_after_steps(device, make, penalty, weight_decay):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    model.to(device, torch.float64)
    x = torch.randn(10, 6, dtype=torch.float64, device=device)
    optimizer = make(model.parameters(), weight_decay=0.0 if penalty else weight_decay)
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        if penalty:
            loss = loss + normreg.l2_penalty(model.parameters(), weight_decay)
        loss.backward()
        optimizer.step()
    return torch.cat([w.detach().flatten() for w in model.parameters()])


def sgd(parameters, weight_decay):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def adam(parameters, weight_decay):
    return torch.optim.Adam(parameters, 0.01, weight_decay=weight_decay)


def adamw(parameters, weight_decay):
    return torch.optim.AdamW(parameters, 0.01, weight_decay=weight_decay)


@pytest.mark.parametrize("make", [sgd, adam])
def test_is_the_weight_decay_of_sgd_and_adam(device, make):
    ours, theirs = (weights_after_steps(device, make, penalty, 0.1) for penalty in (True, False))
    # Adam divides by gradients' sizes, so a rounding of a small one is seen in the step
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_is_not_the_weight_decay_of_adamw(device):
    ours, theirs, none = (
        weights_after_steps(device, adamw, penalty, decay)
        for penalty, decay in ((True, 0.1), (False, 0.1), (False, 0))
    )
    # five of AdamW's own decays shrink a weight by 0.5 %; the penalty moves it by parts of its steps of 1 %
    assert (theirs - none).norm() > 1e-3 * none.norm()
    assert (ours - theirs).norm() > 1e-3 * theirs.norm()


# What it takes and refuses.


def test_what_it_takes(device):
    layer = torch.nn.Linear(3, 4).to(device)
    expected = normreg.l2_penalty([*layer.parameters()], 0.1)
    for given in (layer.parameters(), layer.named_parameters(), dict(layer.named_parameters())):
        assert torch.equal(normreg.l2_penalty(given, 0.1), expected)
    assert torch.equal(normreg.l2_penalty(layer.weight, 0.1), normreg.l2_penalty([layer.weight], 0.1))
    assert normreg.l2_penalty(layer.weight, 0).item() == 0


W = torch.ones(2)


@pytest.mark.parametrize(
    ("parameters", "weight_decay", "error", "message"),
    [
        ([W], -0.1, ValueError, "expected weight_decay to be finite and at least 0, got -0.1: 0 turns"),
        ([W], float("nan"), ValueError, "finite and at least 0, got nan"),
        ([W], float("inf"), ValueError, "finite and at least 0, got inf"),
        ([W], "0.1", TypeError, "expected weight_decay to be a number, got str: pass a float"),
        ([W], W[0], TypeError, "expected weight_decay to be a number, got Tensor"),
        ([], 0.1, ValueError, "at least one parameter, got an empty iterable: pass model.parameters"),
        (iter(()), 0.1, ValueError, "a generator that was used is empty"),
        (None, 0.1, TypeError, "an iterable of tensors or of .name, tensor. pairs, got NoneType: pass model"),
        (torch.nn.Linear(2, 2), 0.1, TypeError, r"got the module Linear: pass its .parameters\(\)"),
        ([W, 3.0], 0.1, TypeError, "expected parameter 1 to be a tensor, got float: pass model.parameters"),
        ([("a.b", None)], 0.1, TypeError, "expected parameter 'a.b' to be a tensor, got NoneType"),
        ([W, W.int()], 0.1, TypeError, "expected parameter 1 to be of a floating.*int32: leave it out"),
        ([("n", W.cfloat())], 0.1, TypeError, "expected parameter 'n' to be of a floating.*complex64"),
        ([("lazy", torch.nn.UninitializedParameter())], 0.1, ValueError,
         "expected parameter 'lazy' to exist, got one that its layer's first call completes: call the model"),
        ([("a", W), ("b", W.to("meta"))], 0.1, ValueError,
         "on one device, got parameter 'a' on cpu and parameter 'b' on meta: add up the penalties"),
    ],
)  # fmt: skip
def test_errors_name_the_parameter(parameters, weight_decay, error, message):
    with pytest.raises(error, match=message):
        normreg.l2_penalty(parameters, weight_decay)

"""First and second derivatives in fp64, against finite differences and against torch."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import normreg


def tensors(device, *shapes):
    return [torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in shapes]


def same_mask(name, p):
    def call(x):
        generator = torch.Generator(x.device).manual_seed(4)
        return getattr(normreg.functional, name)(x, p, training=True, generator=generator)

    return call


def batch_norm(training):
    def call(x, weight=None, bias=None):
        dtype = x.dtype if weight is None else weight.dtype
        running = [torch.arange(1.0, x.shape[1] + 1, dtype=dtype, device=x.device) + 1 / 3 for _ in range(2)]
        return normreg.functional.batch_norm(x, *running, weight, bias, training=training)

    return call


def batch_norm_act(act, training=True, **options):
    def call(x, weight=None, bias=None, residual=None):
        running = [
            torch.arange(1.0, x.shape[1] + 1, dtype=x.dtype, device=x.device) + 1 / 3 for _ in range(2)
        ]
        return normreg.functional.batch_norm_act(
            x, *running, weight, bias, training, act=act, residual=residual, **options
        )

    return call


def group_norm(groups):
    return lambda x, weight=None, bias=None: normreg.functional.group_norm(x, groups, weight, bias)


def instance_norm(use_input_stats):
    def call(x, weight=None, bias=None):
        running = [
            torch.arange(1.0, x.shape[1] + 1, dtype=x.dtype, device=x.device) + 1 / 3 for _ in range(2)
        ]
        return normreg.functional.instance_norm(x, *running, weight, bias, use_input_stats)

    return call


def dropout_add_norm(norm, cols=3, row_scale=None):
    """Of x, the residual, a layer scale and parameters, y and z."""

    def call(x, residual, layer_scale, *parameters):
        generator = torch.Generator(x.device).manual_seed(4)
        scales = dict(layer_scale=layer_scale)
        if row_scale is not None:
            scales["row_scale"] = torch.tensor(row_scale, device=x.device)
        given = dict(p=0.4, prenorm=True, generator=generator, **scales)
        return getattr(normreg.functional, norm)(x, residual, (cols,), *parameters, **given)

    return call


def one_of(function):
    """y + z * 2, so that one incoming gradient reaches both."""

    def call(*inputs):
        y, z = function(*inputs)
        return y + z * 2

    return call


def seeded(name, *arguments, **options):
    def call(*inputs):
        generator = torch.Generator(inputs[0].device).manual_seed(4)
        return getattr(normreg.functional, name)(*inputs, *arguments, generator=generator, **options)

    return call


def layer_norm(*normalized_shape):
    return lambda x, weight=None, bias=None: normreg.functional.layer_norm(x, normalized_shape, weight, bias)


def rms_norm(*normalized_shape):
    return lambda x, weight=None: normreg.functional.rms_norm(x, normalized_shape, weight)


CASES = {
    "layer_norm": (layer_norm(5), [(4, 5), (5,), (5,)]),
    "layer_norm over two dimensions": (layer_norm(3, 2), [(2, 3, 2), (3, 2), (3, 2)]),
    "layer_norm of one row": (layer_norm(6), [(6,), (6,), (6,)]),
    "layer_norm without parameters": (layer_norm(5), [(3, 5)]),
    "layer_norm without bias": (layer_norm(5), [(3, 5), (5,)]),
    "rms_norm": (rms_norm(5), [(4, 5), (5,)]),
    "rms_norm over two dimensions": (rms_norm(3, 2), [(2, 3, 2), (3, 2)]),
    "rms_norm of one row": (rms_norm(6), [(6,), (6,)]),
    "rms_norm without weight": (rms_norm(5), [(3, 5)]),
    "batch_norm": (batch_norm(True), [(5, 3), (3,), (3,)]),
    "batch_norm of images": (batch_norm(True), [(2, 2, 1, 3), (2,), (2,)]),
    "batch_norm without parameters": (batch_norm(True), [(5, 2)]),
    "batch_norm without bias": (batch_norm(True), [(5, 2), (2,)]),
    "batch_norm in evaluation": (batch_norm(False), [(2, 2, 2), (2,), (2,)]),
    "batch_norm in evaluation without parameters": (batch_norm(False), [(5, 2)]),
    "batch_norm and relu": (batch_norm_act("relu"), [(4, 2), (2,), (2,)]),
    "batch_norm, sum and leaky_relu": (
        batch_norm_act("leaky_relu", negative_slope=0.3),
        [(3, 2), (2,), (2,), (3, 2)],
    ),
    "batch_norm, sum and relu6 in evaluation": (
        batch_norm_act("relu6", training=False),
        [(3, 2), (2,), (2,), (3, 2)],
    ),
    "batch_norm and sum": (batch_norm_act(None), [(3, 2), (2,), (2,), (3, 2)]),
    "batch_norm and silu": (batch_norm_act("silu"), [(4, 2), (2,), (2,)]),
    "batch_norm, sum and gelu": (batch_norm_act("gelu"), [(4, 2), (2,), (2,), (4, 2)]),
    "batch_norm and gelu_tanh in evaluation": (
        batch_norm_act("gelu_tanh", training=False),
        [(3, 2), (2,), (2,)],
    ),
    "batch_norm, sum and hardswish without parameters": (
        lambda x, residual: batch_norm_act("hardswish")(x, residual=residual),
        [(4, 2), (4, 2)],
    ),
    "group_norm": (group_norm(2), [(2, 4), (4,), (4,)]),
    "group_norm of images": (group_norm(2), [(2, 4, 1, 3), (4,), (4,)]),
    "group_norm without parameters": (group_norm(1), [(3, 2, 2)]),
    "group_norm without bias": (group_norm(3), [(2, 3, 3), (3,)]),
    "instance_norm": (instance_norm(True), [(2, 2, 4), (2,), (2,)]),
    "instance_norm without parameters": (instance_norm(True), [(2, 2, 3)]),
    "instance_norm in evaluation": (instance_norm(False), [(2, 2, 2), (2,), (2,)]),
    "dropout": (same_mask("dropout", 0.5), [(20,)]),
    "dropout of everything": (same_mask("dropout", 1.0), [(4,)]),
    "dropout1d": (same_mask("dropout1d", 0.5), [(3, 4, 2)]),
    "dropout2d": (same_mask("dropout2d", 0.5), [(3, 2, 1, 3)]),
    "dropout3d of one sample": (same_mask("dropout3d", 0.5), [(8, 1, 2, 1)]),
    "alpha_dropout": (same_mask("alpha_dropout", 0.5), [(20,)]),
    "alpha_dropout of everything": (same_mask("alpha_dropout", 1.0), [(4,)]),
    "feature_alpha_dropout": (same_mask("feature_alpha_dropout", 0.5), [(3, 4, 2)]),
    "drop_path": (same_mask("drop_path", 0.5), [(8, 3)]),
    "dropout_add_layer_norm": (
        one_of(dropout_add_norm("dropout_add_layer_norm")),
        [(2, 3), (2, 3), (3,), (3,), (3,)],
    ),
    "dropout_add_rms_norm, scaled by row": (
        one_of(dropout_add_norm("dropout_add_rms_norm", row_scale=(0.5, 2.0))),
        [(2, 1, 3), (2, 1, 3), (3,), (3,)],
    ),
    "dropout_add_layer_norm alone": (seeded("dropout_add_layer_norm", (3,), p=0.4), [(2, 3), (2, 3)]),
    "dropout_add": (seeded("dropout_add", 0.4), [(2, 3), (2, 3)]),
    "dropout_add with a layer scale": (
        lambda x, residual, scale: seeded("dropout_add", layer_scale=scale)(x, residual),
        [(2, 3), (2, 3), (3,)],
    ),
    "drop_path_add": (seeded("drop_path_add", 0.4, True), [(4, 2), (4, 2)]),
    "bias_act_dropout": (seeded("bias_act_dropout", "gelu", 0.4), [(2, 3), (3,)]),
    "bias_act_dropout without bias": (seeded("bias_act_dropout", act="silu", p=0.4), [(2, 3)]),
}
every_case = pytest.mark.parametrize(("function", "shapes"), CASES.values(), ids=CASES)


@every_case
def test_gradcheck(device, function, shapes):
    assert gradcheck(function, tensors(device, *shapes))


@every_case
def test_gradgradcheck(device, function, shapes):
    assert gradgradcheck(function, tensors(device, *shapes))


@every_case
def test_both_backwards_are_one_function(device, function, shapes):
    """The kernels' gradients, and those of the formula that is taken where they are differentiated again."""
    inputs = tensors(device, *shapes)
    y = function(*inputs)
    dy = torch.randn_like(y)
    kernel = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    formula = torch.autograd.grad(y, inputs, dy, create_graph=True)
    torch.testing.assert_close(kernel, formula, rtol=1e-12, atol=1e-12)


@every_case
def test_batched_gradients(device, function, shapes):
    """`is_grads_batched`, which `torch.autograd.functional.jacobian(vectorize=True)` uses."""
    inputs = tensors(device, *shapes)
    y = function(*inputs)
    dys = torch.randn(3, *y.shape, dtype=y.dtype, device=device)
    batched = torch.autograd.grad(y, inputs, dys, retain_graph=True, is_grads_batched=True)
    single = [torch.autograd.grad(y, inputs, dy, retain_graph=True) for dy in dys]
    torch.testing.assert_close(batched, tuple(map(torch.stack, zip(*single))), rtol=1e-12, atol=1e-12)


def test_gradcheck_channels_last(device):
    (x,) = tensors(device, (2, 2, 1, 3))
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert gradcheck(batch_norm(True), [x, *tensors(device, (2,), (2,))])


@pytest.mark.parametrize(("norm", "parameters"), [(layer_norm, 2), (rms_norm, 1)])
def test_gradcheck_of_rows_wider_than_a_tile(device, norm, parameters):
    """The whole of dx is checked in one direction, not element by element."""
    shapes = [(1, 16386)] + [(16386,)] * parameters
    assert gradcheck(norm(16386), tensors(device, *shapes), fast_mode=True)


def test_gradcheck_of_groups_that_are_split(device):
    """The whole of dx is checked in one direction, not element by element."""
    assert gradcheck(group_norm(2), tensors(device, (1, 4, 90, 91), (4,), (4,)), fast_mode=True)


@pytest.mark.parametrize(("ours", "theirs"), [
    (lambda x: normreg.functional.layer_norm(x, (6,)), lambda x: F.layer_norm(x, (6,))),
    (lambda x: normreg.functional.rms_norm(x, (6,)), lambda x: F.rms_norm(x, (6,))),
    (lambda x: normreg.functional.batch_norm(x, None, None, training=True),
     lambda x: F.batch_norm(x, None, None, training=True)),
    (lambda x: normreg.functional.group_norm(x, 2), lambda x: F.group_norm(x, 2)),
    (lambda x: normreg.functional.instance_norm(x[None])[0], lambda x: F.instance_norm(x[None])[0]),
], ids=["layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm"])  # fmt: skip
def test_second_order_where_the_incoming_gradient_needs_none(device, ours, theirs):
    """(f(x) + x^3).sum(): the case in which a backward marked once-differentiable drops a term in silence."""
    (x,) = tensors(device, (5, 6))
    second = []
    for f in (ours, theirs):
        (g,) = torch.autograd.grad((f(x) * x.detach() + x**3).sum(), x, create_graph=True)
        second.append(torch.autograd.grad((g * x.detach()).sum(), x)[0])
    torch.testing.assert_close(*second)


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm", "BatchNorm1d", "GroupNorm"])
def test_gradient_penalty_step(device, kind):
    """A WGAN-GP step: the gradient of a gradient's norm, with respect to the parameters."""
    results = []
    for library in (normreg, torch.nn):
        torch.manual_seed(2)
        norm = getattr(library, kind)(*([2] if kind == "GroupNorm" else []), 8)
        critic = torch.nn.Sequential(torch.nn.Linear(4, 8), norm, torch.nn.Tanh(), torch.nn.Linear(8, 1))
        critic.to(device, torch.float64)
        (x,) = tensors(device, (7, 4))
        (g,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        ((g.norm(dim=1) - 1) ** 2).mean().backward()
        results.append([p.grad for p in critic.parameters() if p.grad is not None])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "function",
    [batch_norm(True), batch_norm(False), layer_norm(6), rms_norm(6), group_norm(2)],
    ids=["batch_norm", "batch_norm in evaluation", "layer_norm", "rms_norm", "group_norm"],
)
def test_both_backwards_compute_16_bits_in_float32(device, function, dtype):
    x = (torch.randn(50, 6, device=device) + 5).to(dtype).requires_grad_()
    weight = torch.ones(6, device=device, requires_grad=True)
    y = function(x, weight)
    dy = torch.randn_like(y)
    kernel = torch.autograd.grad(y, (x, weight), dy, retain_graph=True)
    formula = torch.autograd.grad(y, (x, weight), dy, create_graph=True)
    # dx is rounded to 16 bits once each, in the interpreter by truncation
    torch.testing.assert_close(kernel[0], formula[0], rtol=2 * torch.finfo(dtype).eps, atol=1e-4)
    torch.testing.assert_close(kernel[1], formula[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("norm", "parameters"),
    [(layer_norm(6), 2), (rms_norm(6), 1), (group_norm(2), 2)],
    ids=["layer_norm", "rms_norm", "group_norm"],
)
def test_second_order_gradients_keep_their_dtypes(device, norm, parameters, dtype):
    x = torch.randn(4, 6, device=device, dtype=dtype, requires_grad=True)
    inputs = [x, *(torch.randn(6, device=device, requires_grad=True) for _ in range(parameters))]
    y = norm(*inputs)
    grads = torch.autograd.grad(y, inputs, torch.randn_like(y), create_graph=True)
    assert [g.dtype for g in grads] == [dtype] + [torch.float32] * parameters
    (second,) = torch.autograd.grad(grads[0].float().square().sum(), x)
    assert second.dtype == dtype
    assert second.isfinite().all()

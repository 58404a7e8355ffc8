"""Reference results, how far from them a result may be, and sizes and layouts that break kernels."""

import torch
from torch.autograd import gradcheck, gradgradcheck

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# next to powers of two, to tiles and to vector widths
RAGGED = (1, 2, 3, 17, 127, 129, 1000, 1025)

# (mean, standard deviation, dtype) of data whose squares lose what their differences keep
LARGE_MEANS = (
    (1e2, 1.0, torch.float16),
    (1e4, 1.0, torch.float32),
    (1e6, 1.0, torch.float32),
    (1e4, 1e-3, torch.float32),
    (0.0, 1e-3, torch.float32),
    (1e6, 1e-3, torch.float64),
)

# columns that conftest.py makes too many to be held: a few small programs, where wide rows take many
WIDE = 200
# the same, whose column sums are held by two programs, three tiles each
HALVES = 1240
# the same, to be held in three tiles, packed in 16 bits; the backward holds 16 bits only
IN_TILES = 760

# Relative error of what is computed in float32, or float64, by a few operations, and rounded to the dtype.
ROUNDED = {dtype: torch.finfo(dtype).eps * (1 if dtype.itemsize > 2 else 0.51) for dtype in DTYPES}

# How many units in the last place our error may exceed torch's own by, for another order of summation: that
# of results and gradients, on a GPU, on compiled code and in the interpreter.
UNITS = {
    torch.float16: 1,
    torch.bfloat16: 1,
    torch.float32: 1,
    torch.float64: 16,  # the reference is torch's own result, so its own error cannot be seen
}


def error(result, exact):
    """Largest absolute error of a tensor against its fp64 reference."""
    assert result.shape == exact.shape, f"shape {tuple(result.shape)}, expected {tuple(exact.shape)}"
    if exact.numel() == 0:
        return 0.0
    return (result.detach().double() - exact).abs().max().item()


def unit(exact, dtype):
    """One unit in the last place of `dtype` at the largest magnitude of the reference."""
    magnitude = exact.abs().max().item() if exact.numel() else 0.0
    return max(magnitude * torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal)


def assert_accurate(ours, theirs, exact, what="result", slack=0.0, units=UNITS):
    """Our error is at most torch's own error, `units` of the dtype at the size of the result, and slack.

    `theirs` is torch's result, or torch's error itself.
    """
    if isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype, f"{what}: dtype {ours.dtype}, torch's is {theirs.dtype}"
        theirs = error(theirs, exact)
    assert not ours.isnan().any() or exact.isnan().any(), f"{what} has NaN where the reference has none"
    ours_error, allowed = error(ours, exact), units[ours.dtype] * (unit(exact, ours.dtype) + slack)
    assert ours_error <= theirs + allowed, (
        f"{what}: error {ours_error:.3g}, torch's {theirs:.3g}, beyond it allowed {allowed:.3g}"
    )


def outcome(call, *arguments, **options):
    """The result, or the exception that was raised instead."""
    try:
        return call(*arguments, **options)
    except Exception as raised:
        return raised


def run(function, inputs, dy):
    """Output and gradients of `function(*inputs)` for the incoming gradient dy."""
    y = function(*inputs)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    return [y, *torch.autograd.grad(y, wanted, dy.to(y.dtype))]


def leave_initial_values(module):
    """Gives a layer weights, biases and running statistics that hide no mistake."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2.0)
        else:
            buffer.fill_(3)


def copies(tensors, dtype=None):
    """Leaf copies, strides kept, in another dtype if one is given."""
    return [
        None if t is None else t.detach().clone().to(dtype or t.dtype).requires_grad_(t.requires_grad)
        for t in tensors
    ]


def nudged(tensor, dtype):
    """The fp64 tensor with every element moved by one unit in the last place of `dtype`, at random."""
    return tensor + tensor * torch.finfo(dtype).eps * (torch.rand_like(tensor) - 0.5).sign()


def neighbour(tensor):
    """A leaf whose elements are at most a unit in the last place away, at random."""
    near = nudged(tensor.detach().double(), tensor.dtype)
    return torch.empty_like(tensor).copy_(near).requires_grad_(tensor.requires_grad)


def torch_errors(theirs, inputs, dy, samples=8):
    """Largest error of torch's result and of each gradient, over some inputs and incoming gradients close by.

    One alone may be lucky: in a small sum that cancels, torch's rounding errors can cancel too.
    """
    errors = []
    for sample in range(samples):
        near_inputs, near = copies(inputs), dy
        if sample > 0:
            near = dy + dy * torch.randn_like(dy) / 128
            near_inputs = [None if t is None else neighbour(t) for t in inputs]
        results = run(theirs, near_inputs, near)
        exact = run(theirs, copies(near_inputs, torch.float64), near.double())
        errors.append([error(*pair) for pair in zip(results, exact, strict=True)])
    return [max(column) for column in zip(*errors, strict=True)]


def assert_agrees(ours, theirs, inputs, dy=None):
    """Forward and every gradient of `ours` against torch's `theirs`, both judged by `theirs` in fp64.

    Gradients are sums of terms that can cancel, so a unit in the last place is also twice what the result
    moves by where the incoming gradient is moved by a unit of the dtype that is computed in, at random. In
    fp64, where the reference rounds as we do, the inputs are moved as well. Inputs and dy must be unchanged
    afterwards, and y must have torch's strides.
    """
    with torch.no_grad():
        torch_y = theirs(*copies(inputs))
    dy = torch.randn_like(torch_y) if dy is None else dy
    before = [*copies(inputs), dy.clone()]
    results = run(ours, inputs, dy)

    exact_inputs, exact_dy = copies(inputs, torch.float64), dy.double()
    exact_results = run(theirs, exact_inputs, exact_dy)
    computed_in = torch.float64 if torch_y.dtype == torch.float64 else torch.float32
    if computed_in == torch.float64:
        exact_inputs = [
            None if t is None else nudged(t.detach(), computed_in).requires_grad_(t.requires_grad)
            for t in exact_inputs
        ]
    nudged_results = run(theirs, exact_inputs, nudged(exact_dy, computed_in))
    slack = [2 * error(*pair) for pair in zip(nudged_results, exact_results, strict=True)]

    assert results[0].stride() == torch_y.stride(), "strides of y"
    dtypes = [torch_y.dtype, *[t.dtype for t in inputs if t is not None and t.requires_grad]]
    names = ["y", *[f"gradient {i}" for i in range(len(dtypes) - 1)]]
    errors = torch_errors(theirs, inputs, dy)
    columns = names, dtypes, results, errors, exact_results, slack
    for name, dtype, result, torch_error, exact, own_slack in zip(*columns, strict=True):
        assert result.dtype == dtype, f"{name}: dtype {result.dtype}, expected {dtype}"
        assert_accurate(result, torch_error, exact, name, own_slack)
    for after, was in zip([*inputs, dy], before, strict=True):
        assert was is None or torch.equal(after, was), "an input or the incoming gradient was changed"
    return results


def layouts(dims):
    """Names of the layouts in which an incoming gradient of so many dimensions arrives."""
    return "contiguous", "expanded", "sliced", "transposed", *["channels_last"] * (dims in (4, 5))


def in_layout(layout, like):
    """A random tensor of that layout."""
    shape, options = like.shape, dict(dtype=like.dtype, device=like.device)
    if layout == "expanded":
        return torch.randn((), **options).expand(shape)
    if layout == "sliced":
        return torch.randn((*shape[:-1], shape[-1] + 3), **options)[..., 1:-2]
    if layout == "transposed":
        return torch.randn(tuple(reversed(shape)), **options).permute(*reversed(range(len(shape))))
    if layout == "channels_last":
        last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        return torch.randn(shape, **options).to(memory_format=last)
    return torch.randn(shape, **options)


def gradient_layouts(like):
    """(name, tensor) for each layout in which an incoming gradient arrives."""
    for layout in layouts(like.dim()):
        yield layout, in_layout(layout, like)


def in_every_layout(*cases):
    """Each case, whose first column is a shape, with each layout of the incoming gradient as its last."""
    return [(*case, layout) for case in cases for layout in layouts(len(case[0]))]


def assert_derivatives(function, inputs, thorough, order=1):
    """Asserts that derivatives of this order are those of finite differences, element by element if thorough.

    Else in one random direction of all inputs and results, where a wrong term of any element shows as well.
    """
    check = {1: gradcheck, 2: gradgradcheck}[order]
    assert check(function, inputs, fast_mode=not thorough)

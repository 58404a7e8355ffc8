"""What a layer keeps for its backward beside its input and parameters, and that autograd sees all of it."""

import copy

import pytest
import torch
from operations import DECLARED, KINDS, LAYERS, every_kind, torch_layer
from saved import bytes_beside, saved_by

import normreg


@pytest.fixture(autouse=True)
def guarded_memory():
    """Not here: guard bands would be counted."""


def both(kind, device, dtype=torch.float32):
    """torch's layer, normreg's with the same state, and an input that requires a gradient."""
    theirs, x = torch_layer(kind, device, dtype)
    ours = copy.deepcopy(theirs)
    normreg.replace(ours)
    return ours, theirs, x.requires_grad_()


modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


# what README's table says of the statistics, of an input x
STATISTICS = {kind: one.kept for one in DECLARED.values() if one.kept for kind in one.layers if kind in KINDS}


# kinds that keep a mean as two numbers, three a row beside torch's two
MEANS_OF_TWO = ("LayerNorm", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@modes
@every_kind
def test_what_is_kept(device, kind, training, dtype):
    *modules, x = both(kind, device, dtype)
    kept = []
    for module in modules:
        module.train(training)
        _, saved = saved_by(lambda module=module: module(x))
        kept.append(bytes_beside(saved, x, *module.parameters()))
    ours, theirs = kept
    if kind in STATISTICS:
        assert ours == STATISTICS[kind](x, training)
    # torch rounds statistics of 16-bit layers to 16 bits: on a CPU all that it computes, on a GPU GroupNorm's
    rounded = kind == "GroupNorm" if x.is_cuda else not (list(modules[0].buffers()) and not training)
    if dtype == torch.float32 or not rounded:
        assert ours <= theirs * (3 if kind in MEANS_OF_TWO else 2) / 2


# layers that torch has not, and what their declarations say of them
OTHERS = {
    kind: (LAYERS[kind], one.kept)
    for one in DECLARED.values()
    for kind in one.layers
    if one.kept and one.over != "channels" and kind == LAYERS[kind].kind and not hasattr(torch.nn, kind)
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@modes
@pytest.mark.parametrize(("row", "kept"), OTHERS.values(), ids=OTHERS)
def test_what_layers_keep_that_torch_has_not(device, row, kept, training, dtype):
    module = row.make().to(device, dtype).train(training)
    x = torch.randn(5, *row.sample, device=device, dtype=dtype, requires_grad=True)
    _, saved = saved_by(lambda: module(x))
    assert bytes_beside(saved, x, *module.parameters()) == kept(x, training)


def tensors_in(value, depth=3):
    """All tensors in a value, itself included."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple, set)):
        for entry in value:
            yield from tensors_in(entry, depth - 1)
    elif depth and isinstance(value, dict):
        yield from tensors_in(list(value.values()), depth)


def nodes(y):
    found, left = [], [y.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.append(node)
            left += [following for following, _ in node.next_functions]
    return found


@modes
@every_kind
def test_nothing_is_kept_out_of_sight(device, kind, training):
    """Every tensor went through save_for_backward, where offloading and checkpointing see it."""
    module, _, x = both(kind, device)
    graph = nodes(module.train(training)(x))
    assert graph or "Dropout" in kind  # which in evaluation returns its input
    assert [t for node in graph for t in tensors_in(getattr(node, "__dict__", {})) if t is not x] == []


def gradients(module, x, y=None, seed=5, **options):
    if y is None:
        torch.manual_seed(seed)
        y = module(x)
    dy = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape)
    return torch.autograd.grad(y, [x, *module.parameters()], dy, **options)


def assert_equal(ours, theirs):
    for our, their in zip(ours, theirs, strict=True):
        assert torch.equal(our, their)


@every_kind
def test_what_is_kept_may_wait_elsewhere(device, kind):
    module, _, x = both(kind, device)
    expected = gradients(module, x)
    with torch.autograd.graph.save_on_cpu():
        torch.manual_seed(5)
        y = module(x)
    assert_equal(gradients(module, x, y), expected)
    # or be thrown away and come back as other tensors
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (t.tolist(), t.dtype), lambda kept: torch.tensor(kept[0], dtype=kept[1], device=device)
    ):
        torch.manual_seed(5)
        y = module(x)
    assert_equal(gradients(module, x, y), expected)


@every_kind
def test_two_forwards_before_a_backward(device, kind):
    """The second one updates the buffers, which the first one's backward is not to see."""
    module, _, x = both(kind, device)
    other = (x.detach() * 3 + 1).requires_grad_()
    expected = [gradients(module, given, seed=seed) for given, seed in ((x, 1), (other, 2))]
    outputs = []
    for given, seed in ((x, 1), (other, 2)):
        torch.manual_seed(seed)
        outputs.append(module(given))
    for buffer in module.buffers():
        buffer.fill_(7)
    for index in (1, 0):
        assert_equal(gradients(module, (x, other)[index], outputs[index]), expected[index])


@modes
@every_kind
def test_two_backward_passes_of_one_forward(device, kind, training):
    module, _, x = both(kind, device)
    y = module.train(training)(x)
    if y is not x:
        assert_equal(gradients(module, x, y, retain_graph=True), gradients(module, x, y))

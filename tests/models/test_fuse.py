"""`replace(fuse=True)`: the same results with fewer operators, undone by `restore`."""

import copy
import pickle

import pytest
import torch
from fusible import (
    BLOCKS,
    DroppingFunctions,
    PostNorm,
    PreNorm,
    Twice,
    assert_close,
    assert_equal,
    fresh_graphs,  # noqa: F401
    made,
    patterns,
    step,
    types,
)
from torch import nn

import normreg

every_block = pytest.mark.parametrize("block", BLOCKS)


@every_block
def test_the_same_results(device, launches, block):
    """Three steps of training and one of evaluation, masks included: they are those of the seed."""
    model, twin, x = made(block, device)
    *_, fused, evaluated = BLOCKS[block]
    report = normreg.replace(model, fuse=True, example_inputs=x)
    assert (patterns(report), report.not_fused) == (fused, ())
    for training in (True, True, True, False):
        assert_close(step(model.train(training), x), step(twin.train(training), x))
    assert patterns(normreg.explain(model, x)) == evaluated
    assert launches


@every_block
def test_fewer_launches(device, launches, block):
    """One operator for each pattern; without gradients, each is one launch or the two of BatchNorm."""
    model, twin, x = made(block, device)
    normreg.replace(model, fuse=True)
    with torch.no_grad():
        model(x)
        counts = []
        for m in (model, twin):
            launches.clear()
            m(x)
            counts.append(len(launches))
    *_, fused, _ = BLOCKS[block]
    assert counts[0] == counts[1] - sum("drop" in what and ("norm" in what) for what in fused)


@every_block
def test_the_model_stays_what_it_is(device, launches, block):
    """Class, state_dict, hooks and attributes are the very objects, and `restore` is exact."""
    model, _, x = made(block, device)
    plain, was, state = copy.deepcopy(model), types(model), model.state_dict()
    objects = [(path, {**vars(module)}) for path, module in model.named_modules()]
    report = normreg.replace(model, fuse=True, example_inputs=x)
    assert type(model) is type(plain)
    assert model.state_dict()._metadata == state._metadata
    assert [(k, t.data_ptr()) for k, t in model.state_dict().items()] == [
        (k, t.data_ptr()) for k, t in state.items()
    ]
    step(model, x)
    model.load_state_dict(plain.state_dict())
    restored = normreg.restore(model)
    assert [change.name for change in restored.changed] == [change.name for change in report.changed]
    assert restored.notes == ("calls are not fused any more: (the model itself)",)
    assert types(model) == was
    for (path, before), (name, module) in zip(objects, model.named_modules(), strict=True):
        assert path == name
        assert vars(module).keys() - {"_compiled_call_impl"} == before.keys() - {"_compiled_call_impl"}
        assert all(vars(module)[key] is value for key, value in before.items())
    launches.clear()
    assert_equal(step(model, x), step(plain, x))
    assert launches == []


class Sums(Twice):
    def __init__(self):
        super().__init__(None)

    def forward(self, x, y):
        return self.act(self.norm(x) + y) + self.layer_norm(x + self.drop(x * 2))


@pytest.mark.parametrize("name", ["x", "y", "norm.weight", "layer_norm.weight"])
def test_the_gradient_of_one_value_alone(device, name):
    """What all others need is not kept."""
    model = Sums().double().to(device)
    twin = copy.deepcopy(model)
    normreg.replace(model, fuse=True), normreg.replace(twin)
    x, y = (torch.randn(5, 8, device=device, dtype=torch.float64) for _ in range(2))
    gradients = []
    for m in (model, twin):
        leaves = dict(m.requires_grad_(False).named_parameters(), x=x.clone(), y=y.clone())
        torch.manual_seed(3)
        leaf = leaves[name].requires_grad_()
        m(leaves["x"], leaves["y"]).square().sum().backward()
        gradients.append(leaf.grad)
    assert_close(gradients[:1], gradients[1:])


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_dropout_drops(device, norm):
    """Training drops anew each time, as the seed says; evaluation drops nothing."""
    for model, size in ((PostNorm(0.5, norm), 8), (PreNorm(0.5, norm), 8), (DroppingFunctions(0.5, norm), 8)):
        normreg.replace(model.to(device), fuse=True)
        x = torch.randn(64, size, device=device)
        torch.manual_seed(3)
        first, second = model(x), model(x)
        assert not torch.equal(first, second)
        torch.manual_seed(3)
        assert torch.equal(model(x), first)
        assert torch.equal(model.eval()(x), model(x))


def test_functions_drop_the_right_share(device):
    """Masks of `F.dropout` are ours once it is fused, so their share and scale are looked at."""
    layer = nn.Sequential(nn.Linear(64, 64)).to(device)

    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return x + torch.nn.functional.dropout(self.layer(x), 0.25)

    model = Dropped()
    report = normreg.replace(model, fuse=True, example_inputs=torch.randn(256, 64, device=device))
    assert patterns(report) == ["dropout -> +"]
    x = torch.randn(256, 64, device=device)
    branch, expected = model(x) - x, layer(x) / 0.75
    kept = branch.abs() > 1e-6
    assert abs(kept.double().mean().item() - 0.75) < 6 * (0.25 * 0.75 / kept.numel()) ** 0.5
    torch.testing.assert_close(branch[kept], expected[kept])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("block", ["with downsample", "post-norm", "Sequential"])
def test_copies_run_unfused(device, launches, block, duplicate):
    """As copies of what `model.compile` compiled run in eager mode."""
    model, twin, x = made(block, device)
    normreg.replace(model, fuse=True)
    model(x)
    copied = duplicate(model)
    assert types(copied) == types(model)
    model.load_state_dict(twin.state_dict()), copied.load_state_dict(twin.state_dict())
    assert_close(step(copied, x), step(model, x))
    assert launches
    assert patterns(normreg.replace(copied, fuse=True, example_inputs=x)) == BLOCKS[block][2]


def test_torchs_own_forwards(device):
    layer = nn.TransformerEncoderLayer(8, 2, 8, device=device).double()
    twin, x = copy.deepcopy(layer), torch.randn(3, 2, 8, device=device, dtype=torch.float64)
    normreg.replace(twin)
    report = normreg.replace(layer, fuse=True, example_inputs=x)
    assert patterns(report) == [
        "dropout1 -> + -> norm1",
        "linear1 -> relu -> dropout",
        "dropout2 -> + -> norm2",
    ]
    assert_close(step(layer, x), step(twin, x))
    assert_close(step(layer.eval(), x), step(twin.eval(), x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_torchs_encoder(device):
    """Layers inside are named, and evaluation keeps torch's fast path, whose padding is another."""
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, device=device)
    encoder = nn.TransformerEncoder(layer, 2).double()
    twin, x = copy.deepcopy(encoder), torch.randn(2, 3, 8, device=device, dtype=torch.float64)
    report = normreg.replace(encoder, fuse=True, example_inputs=x)
    assert {fusion.name for fusion in report.fused} == {"layers.0", "layers.1"}
    assert patterns(report)[:2] == ["dropout1 -> + -> norm1", "linear1 -> relu -> dropout"]
    padding = torch.tensor([[False, False, True], [False, False, False]], device=device)
    with torch.no_grad():
        results = [m.eval()(x, src_key_padding_mask=padding) for m in (encoder, twin)]
    assert_close(*[[result] for result in results])


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: m(x, x[..., :1]),
        lambda m, x: m(x, mask=x[..., :1]),
        lambda m, x: m(x=x, mask=None),
        lambda m, x: m(x, None),
        lambda m, x: m(x=x),
    ],
)
def test_arguments(device, call):
    model, twin, x = made("post-norm", device)
    normreg.replace(model, fuse=True)
    assert_close([call(model.eval(), x)], [call(twin.eval(), x)])
    for arguments in ((), (x, None, None)):
        with pytest.raises(TypeError) as ours:
            model(*arguments)
        with pytest.raises(TypeError) as theirs:
            twin(*arguments)
        assert str(ours.value) == str(theirs.value)


class Flexible(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.act, self.linear = nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6)

    def forward(self, x, scale=2.0, *more, shift=None, **options):
        y = self.act(self.norm(x)) * scale
        for value in (*more, *options.values()):
            y = y + value
        return self.linear(y), shift


def test_any_signature_is_fused(device):
    model = Flexible().double().to(device)
    twin = copy.deepcopy(model)
    normreg.replace(model, fuse=True), normreg.replace(twin)
    x = torch.randn(5, 6, device=device, dtype=torch.float64)
    for inputs, options in (
        ((x,), {}),
        ((x, 3.0), {}),
        ((x, x), dict(shift=x)),
        ((), dict(x=x, scale=4)),
        ((x, 3.0, x), {}),
        ((x,), dict(other=x)),
    ):
        y, shift = model(*inputs, **options)
        expected, expected_shift = twin(*inputs, **options)
        assert_close([y], [expected])
        assert shift is expected_shift
        assert patterns(normreg.explain(model, *inputs, **options)) == ["norm -> act"]


def test_a_broadcast_or_promoted_sum(device):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.shift, self.drop = (
                nn.LayerNorm(8),
                nn.Parameter(torch.randn(1, 8)),
                nn.Dropout(0.5),
            )

        def forward(self, x, y):
            return self.norm(x + self.shift), self.norm(x + y), self.drop(x) + y

    model = Shifted().double().to(device)
    twin = copy.deepcopy(model)
    normreg.replace(model, fuse=True), normreg.replace(twin)
    x = torch.randn(3, 8, device=device, dtype=torch.float64)
    for y, fused in (
        (x * 2, ["+ -> norm", "drop -> +"]),
        (x[:1], []),
        (x.to(torch.float32), ["+ -> norm", "drop -> +"]),
    ):
        torch.manual_seed(1)
        results = model(x, y)
        torch.manual_seed(1)
        assert_close(results, twin(x, y))
        assert [result.dtype for result in results] == [expected.dtype for expected in twin(x, y)]
        assert patterns(normreg.explain(model, x, y)) == fused


def test_autocast(device):
    """The branch is 16 bits and the residual is not: the sum and what follows are promoted as before."""
    model, twin, x = made("post-norm", device, torch.float32)
    normreg.replace(model, fuse=True)
    model.eval(), twin.eval()
    exact = twin(x)
    with torch.autocast(device.type, torch.bfloat16):
        y, expected = model(x), twin(x)
    assert y.dtype == expected.dtype
    # rounded to 16 bits in other places
    assert (y - exact).abs().max() <= 2 * (expected - exact).abs().max()

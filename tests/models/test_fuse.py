"""`replace(fuse=True)`: the same results, undone by `restore`, and refused where it could be wrong."""

import copy

import pytest
import torch
from fusible import BLOCKS, BasicBlock, PostNorm, PreNorm, assert_close, made, step
from support.duplicates import every_duplicate
from torch import nn

import normreg
from normreg.models.fusion import blocks

every_block = pytest.mark.parametrize("block", BLOCKS)


def assert_equal(results, expected):
    assert all(torch.equal(result, want) for result, want in zip(results, expected, strict=True))


def types(model):
    return {name: type(module) for name, module in model.named_modules()}


@every_block
def test_the_same_results(device, launches, block):
    """Three steps of training and one of evaluation."""
    model, twin, x, fused = made(block, device)
    report = normreg.replace(model, fuse=True)
    assert [fusion.what for fusion in report.fused] == fused
    assert report.not_fused == ()
    for training in (True, True, True, False):
        results, expected = (step(m.train(training), x) for m in (model, twin))
        assert_close(results, expected)
    assert launches


@every_block
def test_restore_is_exact(device, launches, block):
    model, twin, x, _ = made(block, device)
    was, state = types(model), model.state_dict()
    objects = [(path, {**vars(module)}) for path, module in model.named_modules()]
    report = normreg.replace(model, fuse=True)
    assert [change.name for change in report.changed] != []
    assert model.state_dict()._metadata == state._metadata
    assert [(k, t.data_ptr()) for k, t in model.state_dict().items()] == [
        (k, t.data_ptr()) for k, t in state.items()
    ]
    assert {change.name for change in normreg.restore(model).changed} == {c.name for c in report.changed}
    assert types(model) == was
    for (path, before), (name, module) in zip(objects, model.named_modules(), strict=True):
        assert path == name
        assert vars(module).keys() == before.keys()
        assert all(vars(module)[key] is value for key, value in before.items())
    assert_equal(step(model, x), step(twin, x))
    assert launches == []


@every_block
def test_each_pattern_is_one_call(device, block):
    model, _, x, fused = made(block, device)
    normreg.replace(model, fuse=True)
    explanation = normreg.explain(model, x)
    calls = [call for call in explanation if call.layer.startswith("normreg.functional.")]
    # a sum without dropout is torch's
    assert [call.path for call in calls].count("kernel") == len(fused) - fused.count("dropout -> +")
    apart = {"with downsample": 1, "Sequential": 2, "pre-norm": 1}.get(block, 0)  # norms by themselves
    assert len(explanation.calls) == len(fused) + apart
    assert not any(skip.reason.endswith("did not call it") for skip in explanation.not_called)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_dropout_drops(device, norm):
    """Training drops the right share, decided by the seed; evaluation drops nothing."""
    model = PostNorm(0.5, norm).to(device)
    normreg.replace(model, fuse=True)
    x = torch.randn(64, 6, device=device)
    torch.manual_seed(3)
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(model(x), first)
    assert torch.equal(model.eval()(x), model(x))
    pre = PreNorm(0.5).to(device)
    normreg.replace(pre, fuse=True)
    assert not torch.equal(pre(x), pre(x))
    assert torch.equal(pre.eval()(x), pre(x))


@every_duplicate
@pytest.mark.parametrize("block", ["with downsample", "post-norm", "Sequential"])
def test_copies(device, launches, block, duplicate):
    model, _, x, _ = made(block, device)
    plain = types(model)
    normreg.replace(model, fuse=True)
    twin = duplicate(model)
    assert types(twin) == types(model)
    assert isinstance(twin, plain[""])
    assert_equal(step(twin, x), step(model, x))
    assert launches
    normreg.restore(twin)
    assert types(twin) == plain


@pytest.mark.parametrize("block", ["with downsample", "post-norm", "pre-norm"])
def test_compiled_without_a_break(device, block):
    model, twin, x, _ = made(block, device)
    normreg.replace(model, fuse=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for training in (True, False):
        results = step(compiled.train(training), x, passed_on=lambda leaf: leaf)
        assert_close(results, step(twin.train(training), x))
    torch._dynamo.reset()


def test_a_class_derived_since(device):
    """What fully_shard does to a module: neither replaced again nor restored to another class."""
    model, twin, x, _ = made("post-norm", device)
    normreg.replace(model, fuse=True)
    for module in (model, model.norm1):
        module.__class__ = type(f"FSDP{type(module).__name__}", (type(module),), {})
    classes = types(model)
    assert_close(step(model, x), step(twin, x))  # norm1 is no part any more
    normreg.replace(model, fuse=True)
    assert types(model) == classes
    report = normreg.restore(model)
    assert [skip.name for skip in report.skipped] == ["(the model itself)", "norm1"]
    assert {skip.reason for skip in report.skipped} == {
        "its class was derived from normreg's since, as by fully_shard: undo that first"
    }
    assert (type(model), type(model.norm1)) == (classes[""], classes["norm1"])
    assert type(model.norm2) is nn.LayerNorm


def test_again_and_dry(device):
    model, _, _, fused = made("with downsample", device)
    was = types(model)
    would = normreg.replace(model, fuse=True, dry_run=True)
    assert types(model) == was
    assert [fusion.what for fusion in would.fused] == fused
    report = normreg.replace(model, fuse=True)
    assert (report.changed, report.fused) == (would.changed, would.fused)
    now = types(model)
    assert normreg.replace(model, fuse=True).changed == normreg.replace(model).changed == ()
    assert types(model) == now
    normreg.restore(model)
    normreg.replace(model)
    assert [fusion.what for fusion in normreg.replace(model, fuse=True).fused] == fused
    assert types(model) == now


def test_the_report_in_words(device):
    model = nn.Sequential(BasicBlock(3), nn.Flatten())
    model[0].relu.register_forward_hook(lambda *_: None)
    text = str(normreg.replace(nn.Sequential(BasicBlock(3), model), fuse=True, dry_run=True))
    assert "2 patterns would be fused\nin  what\n--  ----------------\n0   bn1 -> relu\n" in text
    assert "2 not fused" in text
    assert "1.0  bn2 -> + -> relu  a hook sits on it: relu" in text


def test_what_is_excluded_is_not_fused(device):
    model, _, _, fused = made("BasicBlock", device)
    report = normreg.replace(model, exclude="bn1", fuse=True)
    assert [fusion.what for fusion in report.fused] == fused[1:]
    assert type(model.bn1) is nn.BatchNorm2d


def test_functions_of_what_is_excluded(device):
    model = nn.ModuleDict({"a": PreNorm(0.1), "b": PreNorm(0.1)}).to(device)
    for options, modules in (
        (dict(exclude="a*"), {"b"}),
        (dict(exclude="a.norm*"), {"a", "b"}),
        (dict(include="b.*"), {"b"}),
        (dict(exclude=lambda name, module: "norm" in name), {"a", "b"}),
    ):
        report = normreg.replace(model, fuse=True, dry_run=True, **options)
        assert {fusion.name for fusion in report.fused} == modules
    report = normreg.replace(model, fuse=True, include="b.*", dry_run=True)
    assert [fusion.what for fusion in report.fused] == ["dropout -> + -> norm2"]


def test_torchs_own_forwards(device):
    layer = nn.TransformerEncoderLayer(8, 2, 8, device=device)
    report = normreg.replace(nn.Sequential(layer), fuse=True)
    assert [(skip.name, skip.reason) for skip in report.not_fused] == [
        ("0", "a forward of torch's own is not rewritten")
    ]


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
    model, twin, x, _ = made("post-norm", device)
    normreg.replace(model, fuse=True)
    assert_close([call(model, x)], [call(twin, x)])
    for arguments in ((), (x, None, None)):
        with pytest.raises(TypeError) as ours:
            model(*arguments)
        with pytest.raises(TypeError) as theirs:
            twin(*arguments)
        assert str(ours.value) == str(theirs.value)


def test_a_broadcast_or_promoted_sum(device):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.shift, self.drop = nn.LayerNorm(6), nn.Parameter(torch.randn(1, 6)), nn.Dropout(0)

        def forward(self, x, y):
            return self.norm(x + self.shift), self.norm(x + y), self.drop(x) + y

    model = Shifted().double().to(device)
    twin = copy.deepcopy(model)
    assert [fusion.what for fusion in normreg.replace(model, fuse=True).fused] == [
        *["+ -> norm"] * 2,
        "drop -> +",
    ]
    x = torch.randn(5, 6, device=device, dtype=torch.float64)
    for y in (x[:1], x.float()):
        assert_close(model(x, y), twin(x, y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_meta(device, dtype):
    for block in ("BasicBlock", "post-norm"):
        model, twin, x, fused = made(block, device, torch.float32)
        model, x = model.to(dtype), x.to(dtype)
        assert [fusion.what for fusion in normreg.replace(model, fuse=True).fused] == fused
        with torch.no_grad():
            y, exact = model(x), twin(x.float())
        assert y.dtype == dtype
        assert (y.float() - exact).abs().max() <= 16 * torch.finfo(dtype).eps * exact.abs().max()
        meta = copy.deepcopy(twin).to("meta")
        normreg.replace(meta, fuse=True)
        assert meta(x.float().to("meta")).shape == y.shape


def test_an_error_while_matching_changes_nothing(device, monkeypatch):
    model = nn.Sequential(BasicBlock(3), BasicBlock(3))
    was, real = types(model), blocks.derived

    def broken(original, plan):
        if broken.calls:
            raise RuntimeError("no more")
        broken.calls += 1
        return real(original, plan)

    broken.calls = 0
    monkeypatch.setattr(blocks, "derived", broken)
    with pytest.raises(RuntimeError, match="no more"):
        normreg.replace(model, fuse=True)
    assert types(model) == was


def test_autocast(device):
    """The branch is 16 bits and the residual is not: the sum and what follows are promoted as before."""
    model, twin, x, _ = made("post-norm", device, torch.float32)
    normreg.replace(model, fuse=True)
    exact = twin(x)
    with torch.autocast(device.type, torch.bfloat16):
        y, expected = model(x), twin(x)
    assert y.dtype == expected.dtype
    # rounded to 16 bits in other places
    assert (y - exact).abs().max() <= 2 * (expected - exact).abs().max()

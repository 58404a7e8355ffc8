"""`replace(fuse=True)`: the same results, undone by `restore`, and refused where it could be wrong."""

import copy
import random

import pytest
import torch
from duplicates import every_duplicate
from fusible import BLOCKS, BasicBlock, Functional, PostNorm, PreNorm, convolutional
from torch import nn

import normreg
from normreg.models.fusion import blocks

every_block = pytest.mark.parametrize("block", BLOCKS)


def made(block, device, dtype=torch.float64):
    """A model with nothing at its initial value, its twin, an input and what is to be fused."""
    make, shape, fused = BLOCKS[block]
    model = make().to(device, dtype)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return model, copy.deepcopy(model), torch.randn(shape, device=device, dtype=dtype), fused


def step(model, x, passed_on=torch.clone):
    """Output, gradients and buffers; some models write into what they are passed."""
    x = x.clone().requires_grad_()
    y = model(passed_on(x))
    gradients = torch.autograd.grad(y.square().sum(), [x, *model.parameters()], allow_unused=True)
    return [y.detach(), *(g for g in gradients if g is not None), *(b.clone() for b in model.buffers())]


def assert_close(results, expected, units=4096):
    """Sums in another order, of terms of up to some hundreds that cancel; a wrong formula errs at once."""
    for result, want in zip(results, expected, strict=True):
        allowed = units * torch.finfo(torch.float64).eps * max(want.abs().max().item(), 1)
        assert (result - want).abs().max().item() <= allowed


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
    """The share of zeros, in training and not in evaluation; the seed decides."""
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
        (dict(exclude="a*"), {"b"}), (dict(exclude="a.norm*"), {"a", "b"}), (dict(include="b.*"), {"b"}),
        (dict(exclude=lambda name, module: "norm" in name), {"a", "b"}),
    ):  # fmt: skip
        report = normreg.replace(model, fuse=True, dry_run=True, **options)
        assert {fusion.name for fusion in report.fused} == modules
    report = normreg.replace(model, fuse=True, include="b.*", dry_run=True)
    assert [fusion.what for fusion in report.fused] == ["dropout -> + -> norm2"]


class Twice(nn.Module):
    """Its forward is given to it."""

    def __init__(self, forward, inner=nn.ReLU):
        super().__init__()
        self.linear, self.norm, self.act = nn.Linear(6, 6), nn.BatchNorm1d(6), inner()
        self.layer_norm, self.drop, self.steps, self.limit = nn.LayerNorm(6), nn.Dropout(0.0), 0, 3
        self.register_buffer("seen", torch.zeros(()))
        self.compute = forward

    def forward(self, x):
        return self.compute(self, x)


def used_elsewhere(m, x):
    y = m.norm(x)
    return m.act(y) + y


def sum_used_elsewhere(m, x):
    y = m.norm(x) + x
    return m.act(y) * y


def residual_overwritten(m, x):
    y = m.linear(x)
    y += m.norm(x)
    return m.act(y)


def input_overwritten(m, x):
    return m.drop(m.act(x))


def overwritten_between(m, x):
    y = m.norm(x)
    x.mul_(2)
    return m.act(y) + x


def residual_overwritten_between(m, x):
    y = m.norm(m.linear(x)) + x
    x.mul_(2)
    return m.act(y)


def sum_overwritten_between(m, x):
    z = x + m.linear(x)
    z.mul_(2)
    return m.layer_norm(z)


def stream_overwritten_between(m, x):
    z = x + m.linear(x)
    w = z * 3
    z.mul_(2)
    return m.layer_norm(z) + w


class Writer(nn.Module):
    def forward(self, x):
        return x.mul_(2) * 1


def module_writes_between(m, x):
    y = m.norm(x)
    return m.act(y + m.inner(x))


def overwrites_a_view(m, x):
    y = m.linear(x)
    return m.drop(m.inner(y.view(-1, 6))) * y


def overwrites_what_a_module_passes_on(m, x):
    return m.drop(m.inner(m.same(x))) * x


def overwrites_a_hooked_output(m, x):
    return m.drop(m.inner(m.watched(x)))


def adds_to_the_input(m, x):
    x += m.linear(x)
    return m.layer_norm(x)


def another_name(m, x):
    y = m.norm(x)
    z = y
    y += x
    return m.act(y) + z


def overwritten_later(m, x):
    y = m.linear(x)
    z = m.drop(m.act(y))
    return z * y.mul_(2)


def residual_overwritten_later(m, x):
    y = m.linear(x)
    z = m.inner(m.norm(x) + y)
    return z + y.mul_(2)


def called_between(m, x):
    y = m.norm(x)
    return m.act(y + m.linear(m.norm(x * 2)))


ELSEWHERE = "what norm returns is used elsewhere, too"
BETWEEN = "mul_, called after it, may overwrite what {} reads"
WRITES = "inner overwrites a value that may be used elsewhere"
PATTERNS_LEFT = {
    "module writes between": (
        module_writes_between,
        "inner, called after it, may overwrite what norm reads",
        Writer,
    ),
    "known module writes between": (
        module_writes_between,
        "inner, called after it, may overwrite what norm reads",
        lambda: nn.Sequential(nn.ReLU(inplace=True)),
    ),
    "overwrites a view": (overwrites_a_view, WRITES),
    "overwrites what a module passes on": (overwrites_what_a_module_passes_on, WRITES),
    "overwrites a hooked output": (overwrites_a_hooked_output, WRITES),
    "adds to the input": (adds_to_the_input, "+ overwrites a value that may be used elsewhere"),
    "another name": (another_name, ELSEWHERE),
    "overwritten later": (overwritten_later, BETWEEN.format("act")),
    "residual overwritten later": (residual_overwritten_later, BETWEEN.format("norm"), nn.SiLU),
    "called between": (called_between, "norm is called in between, too"),
    "used elsewhere": (used_elsewhere, ELSEWHERE),
    "sum used elsewhere": (sum_used_elsewhere, "what + returns is used elsewhere, too"),
    "residual overwritten": (residual_overwritten, "+ overwrites a value that may be used elsewhere"),
    "input overwritten": (input_overwritten, "act overwrites a value that may be used elsewhere"),
    "overwritten between": (overwritten_between, BETWEEN.format("norm")),
    "residual overwritten between": (residual_overwritten_between, BETWEEN.format("norm")),
    "stream overwritten between": (stream_overwritten_between, BETWEEN.format("+")),
}


def assert_left_as_it_is(model, x, report, reason):
    twin = copy.deepcopy(model)
    normreg.restore(twin)
    assert report.fused == ()
    assert [skip.reason for skip in report.not_fused] == [reason]
    assert not isinstance(model, blocks.Fused)
    with torch.no_grad():  # where backward's inputs are overwritten, torch's raises, too
        assert_close([model(x.clone())], [twin(x.clone())])


@pytest.mark.parametrize("case", PATTERNS_LEFT.values(), ids=PATTERNS_LEFT)
def test_patterns_left_alone(device, case):
    forward, reason, *inner = case
    model = Twice(forward, lambda: nn.ReLU(inplace=forward is input_overwritten)).double().to(device)
    model.inner, model.same, model.watched = nn.ReLU(inplace=True), nn.Identity(), copy.deepcopy(model.linear)
    for make in inner:
        model.inner = make()
    model.watched.register_forward_hook(lambda *_: None)
    report = normreg.replace(model, fuse=True)
    x = torch.randn(5, 6, device=device, dtype=torch.float64)
    assert_left_as_it_is(model, x, report, reason)


def hooked(register):
    def put(model):
        getattr(model.act, register)(lambda *_: None)

    return put


def overridden(model):
    model.act.forward = lambda x: x * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (hooked("register_forward_hook"), "a hook sits on it: act"),
        (hooked("register_forward_pre_hook"), "a hook sits on it: act"),
        (hooked("register_full_backward_hook"), "a hook sits on it: act"),
        (hooked("register_full_backward_pre_hook"), "a hook sits on it: act"),
        (overridden, "its forward is overridden on the instance: act"),
    ],
)
def test_what_would_vanish(device, change, reason):
    model = Twice(lambda m, x: m.act(m.norm(m.linear(x)))).double().to(device)
    change(model)
    report = normreg.replace(model, fuse=True)
    assert report.fused == ()
    assert [skip.reason for skip in report.not_fused] == [reason]


def by_value(m, x):
    return m.act(m.norm(x)) if x.sum() > 0 else x


def by_type_in_between(m, x):
    y = m.linear(x)
    return m.act(m.norm(y[0] if isinstance(y, tuple) else y))


def counting(m, x):
    m.steps += 1
    return m.act(m.norm(x))


def remembering(m, x):
    m.last = m.norm(x)
    return m.act(m.last)


def in_training_only(m, x):
    return m.act(m.norm(x)) if m.training else m.norm(x)


def by_autocast(m, x):
    return m.norm(x) if torch.is_autocast_enabled("cpu") else m.act(m.norm(x))


def asking(m, x):
    return m.act(m.norm(x.tensors if hasattr(m.linear(x), "tensors") else x))


def telling(m, x):
    y = m.norm(x)
    y.normalized = True
    return m.act(y)


def partly_without_gradient(m, x):
    with torch.no_grad():
        y = m.linear(x)
    return m.act(m.norm(y))


def at_random(m, x):
    return m.act(m.norm(x)) if torch.rand(()) > -1 else x


def at_pythons_random(m, x):
    return m.act(m.norm(x)) if random.random() > -1 else x


def of_numbers(m, x):
    return m.act(m.norm(x)) + torch.ones(6)


FORWARDS_LEFT = {
    "by value": (by_value, "torch.fx cannot trace its forward: symbolically traced variables"),
    "by type": (by_type_in_between, "its forward asks for the type of a value in between"),
    "counting": (counting, "its forward changes attributes of the module"),
    "remembering": (remembering, "its forward changes attributes of the module"),
    "in training only": (in_training_only, "its forward takes another way in evaluation or under autocast"),
    "by autocast": (by_autocast, "its forward takes another way in evaluation or under autocast"),
    "asking": (asking, "its forward asks a value in between for 'tensors', which tensors have not"),
    "telling": (telling, "its forward sets 'normalized' of a value"),
    "no_grad": (partly_without_gradient, "its forward computes a part in another grad or autocast mode"),
    "random": (at_random, "its forward draws random numbers"),
    "Python's random": (at_pythons_random, "its forward draws random numbers"),
    "a constant tensor": (of_numbers, "its forward changes attributes of the module"),
}


@pytest.mark.parametrize(("forward", "reason"), FORWARDS_LEFT.values(), ids=FORWARDS_LEFT)
def test_forwards_left_alone(device, forward, reason):
    model = Twice(forward).to(device)
    attributes, entries = {**vars(model)}, {**model._modules}
    states = torch.get_rng_state(), random.getstate()
    report = normreg.replace(model, fuse=True)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert vars(model) == attributes
    assert model._modules == entries
    assert report.fused == ()
    (skip,) = report.not_fused
    assert (skip.name, skip.kind) == ("(the model itself)", "test_fuse.Twice")
    assert skip.reason.startswith(reason)
    assert type(model) is Twice


class Flexible(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.act, self.linear = nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6)

    def forward(self, x, scale=2.0, *more, shift=None, **options):
        y = self.act(self.norm(x)) * scale
        for value in (*more, *options.values()):
            y = y + value
        return self.linear(y), shift


def test_arguments_that_are_passed_on(device, launches):
    model = Flexible().double().to(device)
    twin = copy.deepcopy(model)
    assert [fusion.what for fusion in normreg.replace(model, fuse=True).fused] == ["norm -> act"]
    x = torch.randn(5, 6, device=device, dtype=torch.float64)
    for fused, inputs, options in (
        (True, (x,), {}), (True, (x, 3.0), {}), (True, (x, x), dict(shift=x)), (True, (), dict(x=x, scale=4)),
        (False, (x, 3.0, x), {}), (False, (x,), dict(other=x)),
    ):  # fmt: skip
        y, shift = model(*inputs, **options)
        expected, expected_shift = twin(*inputs, **options)
        assert_close([y], [expected])
        assert shift is expected_shift
        calls = [call.layer for call in normreg.explain(model, *inputs, **options)]
        assert calls == ["normreg.functional.batch_norm_act" if fused else "normreg.BatchNorm1d"]


class ByOption(Twice):
    def forward(self, x, flag=None):
        return self.act(self.norm(x)) if flag is None else self.norm(x)


class WithOption(Twice):
    def forward(self, x, scale=1.0):
        return self.act(self.norm(x)) * (scale + 1)


@pytest.mark.parametrize("cls", [ByOption, WithOption])
def test_arguments_that_decide(device, cls):
    model = cls(None).double().to(device)
    twin = copy.deepcopy(model)
    assert [fusion.what for fusion in normreg.replace(model, fuse=True).fused] == ["norm -> act"]
    assert not type(model).plan.passed_on
    x = torch.randn(5, 6, device=device, dtype=torch.float64)
    for inputs in ((x,), (x, 5.0)):
        assert_close([model(*inputs)], [twin(*inputs)])


class Tuned(nn.ReLU):
    def forward(self, x):
        return super().forward(x) + 1


def test_an_unknown_activation_is_not_lost(device):
    model = nn.Sequential(nn.BatchNorm1d(6), Tuned(), nn.BatchNorm1d(6), nn.Tanh())
    assert normreg.replace(model, fuse=True).fused == ()
    assert type(model) is nn.Sequential


def test_types_of_inputs(device):
    """Every call that is fused has tensors."""

    def forward(m, x):
        return m.act(m.norm(m.linear(x if isinstance(x, torch.Tensor) else torch.cat(x))))

    model = Twice(forward).double().to(device)
    twin = copy.deepcopy(model)
    assert len(normreg.replace(model, fuse=True).fused) == 1
    x = torch.randn(5, 6, device=device, dtype=torch.float64)
    assert_close([model(x), model([x, x])], [twin(x), twin([x, x])])


LATER = {
    "hook": lambda m: m.relu.register_forward_hook(lambda module, inputs, output: output * 2),
    "pre-hook": lambda m: m.bn1.register_forward_pre_hook(lambda module, inputs: inputs[0] * 2),
    "another activation": lambda m: setattr(m, "relu", nn.Tanh()),
    "a layer restored": lambda m: normreg.restore(m.bn2),
    "a layer assigned": lambda m: setattr(m, "downsample", nn.Conv2d(3, 3, 1).to(m.conv1.weight)),
    "forward assigned": lambda m: setattr(m.relu, "forward", lambda x: x * 3),
}


@pytest.mark.parametrize("change", LATER.values(), ids=LATER)
def test_changes_afterwards_count(device, change):
    model, twin, x, _ = made("BasicBlock", device)
    normreg.replace(model, fuse=True)
    step(model, x), step(twin, x)
    for m in (model, twin):
        torch.manual_seed(2)
        change(m)
    assert_close(step(model, x), step(twin, x))
    assert_close(step(model.eval(), x), step(twin.eval(), x))


def limited(m, x):
    return m.act(m.norm(x)) * m.limit


def test_settings_and_lists_afterwards(device):
    for make, change in (
        (convolutional, lambda m: m.append(nn.Sigmoid())),
        (convolutional, lambda m: setattr(m[8], "negative_slope", 0.7)),
        (convolutional, lambda m: setattr(m[11], "approximate", "none")),
        (lambda: Twice(limited), lambda m: setattr(m, "limit", 5)),
        (Functional, lambda m: m.norms[1].eval()),
        (PreNorm, lambda m: setattr(m, "p", 1.0)),
        (PostNorm, lambda m: setattr(m.dropout1, "p", 1.0)),
    ):
        model = make().double().to(device)
        twin = copy.deepcopy(model)
        normreg.replace(model, fuse=True)
        assert isinstance(model, blocks.Fused)
        shape = (2, 3, 4, 4) if isinstance(model, nn.Sequential) else (5, 6)
        x = torch.randn(shape, device=device, dtype=torch.float64)
        change(model), change(twin)
        assert_close(step(model, x), step(twin, x))


def test_a_new_output_may_be_overwritten(device):
    """What VGG's classifier does."""
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(True), nn.Dropout(), nn.Linear(6, 6), nn.ReLU(True))
    assert [fusion.what for fusion in normreg.replace(model.to(device), fuse=True).fused] == ["1 -> 2"]
    outputs = []
    model[0].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model.eval()(torch.randn(3, 6, device=device))
    assert outputs[0].min() == 0  # as it was before


def test_hooks_of_all_modules_are_called(device):
    model = nn.Sequential(nn.BatchNorm1d(6), nn.ReLU()).to(device)
    normreg.replace(model, fuse=True)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        model(torch.randn(3, 6, device=device))
    finally:
        handle.remove()
    assert seen == [normreg.BatchNorm1d, nn.ReLU, type(model)]


def test_torchs_own_forwards(device):
    layer = nn.TransformerEncoderLayer(8, 2, 8, device=device)
    report = normreg.replace(nn.Sequential(layer), fuse=True)
    assert [(skip.name, skip.reason) for skip in report.not_fused] == [
        ("0", "a forward of torch's own is not rewritten")
    ]


@pytest.mark.parametrize("call", [
    lambda m, x: m(x, x[..., :1]), lambda m, x: m(x, mask=x[..., :1]), lambda m, x: m(x=x, mask=None),
    lambda m, x: m(x, None), lambda m, x: m(x=x),
])  # fmt: skip
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

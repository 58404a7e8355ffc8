import copy
import io
import re
import time
from collections import OrderedDict

import pytest
import torch
from duplicates import every_duplicate
from operations import KINDS, every_kind, torch_layer
from reference import error, unit
from torch import nn
from torch.nn.utils import parametrize

import normreg
from normreg.models import replace as convert
from normreg.models.report import Change, Report, Skip

NESTED = {
    "stem.1": "LayerNorm",
    "stem.2": "RMSNorm",
    "blocks.0": "BatchNorm1d",
    "blocks.1.0": "Dropout",
    "heads.a": "BatchNorm2d",
    "heads.b.0": "BatchNorm3d",
    "drops.0": "Dropout1d",
    "drops.1": "Dropout2d",
    "drops.2": "Dropout3d",
    "drops.3": "AlphaDropout",
    "drops.4": "FeatureAlphaDropout",
    "groups.0": "GroupNorm",
    "groups.1": "InstanceNorm1d",
    "groups.2": "InstanceNorm2d",
    "groups.3": "InstanceNorm3d",
    "groups.4": "SyncBatchNorm",
}


class PlainNorm(nn.modules.batchnorm._BatchNorm):
    """Of a kind that normreg has, but no class that it has a counterpart of."""


def nested(device):
    """Every kind in every container, beside what stays; hooks, extra attributes, frozen and eval parts."""
    made = {path: torch_layer(kind, device)[0] for path, kind in NESTED.items()}
    model = nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(nn.Linear(6, 6), made["stem.1"], made["stem.2"]),
            blocks=nn.ModuleList([made["blocks.0"], nn.ModuleList([made["blocks.1.0"], nn.GELU()])]),
            heads=nn.ModuleDict({"a": made["heads.a"], "b": nn.Sequential(made["heads.b.0"], PlainNorm(2))}),
            drops=nn.ModuleList(module for path, module in made.items() if path.startswith("drops")),
            groups=nn.ModuleList(module for path, module in made.items() if path.startswith("groups")),
            last=PlainNorm(6),
        )
    ).to(device)
    norm = made["stem.1"]
    for module in (norm, made["blocks.0"], made["blocks.1.0"]):
        module.register_forward_pre_hook(lambda module, inputs: None)
        module.register_forward_hook(lambda module, inputs, output: None)
        module.register_full_backward_hook(lambda module, dx, dy: None)
        module.extra = {"tag": object()}
    norm.weight.requires_grad_(False)
    norm.bias.grad = torch.ones_like(norm.bias)
    made["heads.a"].eval()
    return model


def contents(model):
    """(where, object) of every attribute of every module, and of every entry of its dictionaries."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            yield f"{path}.{name}", value
            if isinstance(value, dict):
                yield from ((f"{path}.{name}[{key}]", entry) for key, entry in value.items())


def tensor_facts(model):
    return [
        (name, t.data_ptr(), t._version, t.requires_grad, id(t.grad))
        for name, t in [*model.named_parameters(), *model.named_buffers()]
    ]


def types(model):
    return {name: type(module) for name, module in model.named_modules()}


def run(model, x):
    """Output and gradients, for the same random numbers every time."""
    torch.manual_seed(5)
    x = x.detach().clone().requires_grad_()
    y = model(x)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    return [y.detach(), *torch.autograd.grad(y, wanted, torch.randn_like(y))]


def assert_all_equal(results, expected):
    for result, want in zip(results, expected, strict=True):
        assert torch.equal(result, want)


def assert_states_equal(state, expected):
    assert list(state) == list(expected)
    assert_all_equal(state.values(), expected.values())


@every_kind
def test_kernels_run_after_replace_and_not_after_restore(device, launches, kind):
    module, x = torch_layer(kind, device)
    run(module, x)
    assert launches == []
    normreg.replace(module)
    run(module, x)
    assert len(launches) >= 2
    kernels = (*KINDS[kind].kernels.split(), "layer_norm_backward_finish")
    assert all(name.startswith(kernels) for name in launches)
    assert launches[0].startswith(kernels[0])
    launches.clear()
    normreg.restore(module)
    run(module, x)
    assert launches == []


def test_exact_types_everywhere_and_nothing_else(device):
    model = nested(device)
    was = types(model)
    report = normreg.replace(model)
    now = {name: getattr(normreg, NESTED[name]) if name in NESTED else cls for name, cls in was.items()}
    assert types(model) == now
    assert outcome(report) == (
        tuple(Change(name, f"torch.nn.{kind}", f"normreg.{kind}") for name, kind in NESTED.items()),
        (
            Skip("heads.b.1", "test_convert.PlainNorm", "normreg has no counterpart"),
            Skip("last", "test_convert.PlainNorm", "normreg has no counterpart"),
        ),
    )
    report = normreg.restore(model)
    assert types(model) == was
    assert outcome(report) == (
        tuple(Change(name, f"normreg.{kind}", f"torch.nn.{kind}") for name, kind in NESTED.items()),
        (),
    )


@pytest.mark.parametrize("undo", [False, True], ids=["replace", "replace and restore"])
def test_nothing_but_the_class_changes(device, undo):
    model = nested(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    objects, facts = list(contents(model)), tensor_facts(model)
    modules, text = list(model.modules()), repr(model)
    state = model.state_dict()

    normreg.replace(model)
    if undo:
        normreg.restore(model)

    after = list(contents(model))
    assert [where for where, _ in after] == [where for where, _ in objects]
    assert [where for (where, a), (_, b) in zip(after, objects) if a is not b] == []
    assert tensor_facts(model) == facts
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], model.parameters(), strict=True))
    assert repr(model) == text
    assert model.state_dict()._metadata == state._metadata
    assert [(k, t.data_ptr()) for k, t in model.state_dict().items()] == [
        (k, t.data_ptr()) for k, t in state.items()
    ]


@every_kind
def test_is_still_the_torch_class(device, kind):
    module, _ = torch_layer(kind, device)
    text = repr(module)
    normreg.replace(module)
    assert type(module) is getattr(normreg, kind)
    # DistributedDataParallel refuses torch's own SyncBatchNorm on CPUs
    assert isinstance(module, getattr(nn, kind)) == (kind != "SyncBatchNorm")
    assert isinstance(module, nn.modules.batchnorm._BatchNorm) == ("BatchNorm" in kind)
    assert repr(module) == text


@every_kind
def test_the_root_itself(device, kind):
    module, _ = torch_layer(kind, device)
    report = normreg.replace(module)
    assert [change.name for change in report.changed] == ["(the model itself)"]
    assert type(normreg.restore(module)) is Report
    assert type(module) is getattr(nn, kind)


def outcome(report):
    return report.changed, report.skipped


def test_idempotent(device):
    model = nested(device)
    assert outcome(normreg.restore(model)) == ((), ())
    first = normreg.replace(model)
    now = types(model)
    assert outcome(normreg.replace(model)) == ((), first.skipped)
    assert types(model) == now
    normreg.restore(model)
    assert outcome(normreg.restore(model)) == ((), ())
    assert normreg.replace(model) == first
    assert types(model) == now


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@every_kind
def test_restore_is_bit_exact(device, launches, kind, training):
    module, x = torch_layer(kind, device)
    module.train(training)
    reference = copy.deepcopy(module)
    normreg.replace(module)
    normreg.restore(module)
    assert_all_equal(run(module, x), run(reference, x))
    assert_states_equal(module.state_dict(), reference.state_dict())
    assert launches == []


def test_checkpoints_load_both_ways(device):
    before = nested(device)
    state = before.state_dict()
    replaced = nested(device)
    normreg.replace(replaced)
    assert not all(torch.equal(t, state[name]) for name, t in replaced.state_dict().items())
    assert not any(replaced.load_state_dict(state, strict=True))
    assert_states_equal(replaced.state_dict(), state)

    replaced.blocks[0](torch.randn(4, 6, device=device))
    moved = replaced.state_dict()
    assert moved["blocks.0.num_batches_tracked"] == 4
    file = io.BytesIO()
    torch.save(moved, file)
    file.seek(0)
    plain = nested(device)
    assert not any(plain.load_state_dict(torch.load(file, weights_only=True), strict=True))
    assert_states_equal(plain.state_dict(), moved)


def test_checkpoint_from_before_num_batches_tracked(device):
    """Torch 0.4 and older; the layer's own counter stays."""
    module, _ = torch_layer("BatchNorm2d", device)
    normreg.replace(module)
    state = {name: t * 2 for name, t in module.state_dict().items() if name != "num_batches_tracked"}
    assert not any(module.load_state_dict(state, strict=True))
    assert_states_equal(module.state_dict(), {**state, "num_batches_tracked": torch.tensor(3, device=device)})


@every_duplicate
def test_copies(device, launches, duplicate):
    model = nn.Sequential(*(torch_layer(kind, device)[0] for kind in KINDS))
    normreg.replace(model)
    twin = duplicate(model)
    assert types(twin) == types(model)
    assert_states_equal(twin.state_dict(), model.state_dict())
    pointers = {t.data_ptr() for t in model.state_dict().values()}
    assert not pointers & {t.data_ptr() for t in twin.state_dict().values()}
    x = torch.randn(5, 6, device=device)
    of_six = ("LayerNorm", "RMSNorm", "BatchNorm1d", "Dropout")
    places = [place for place, kind in enumerate(KINDS) if kind in of_six]
    ends = [nn.Sequential(*(m[place] for place in places)) for m in (twin, model)]
    assert_all_equal(run(ends[0], x), run(ends[1], x))
    assert {name.split("_")[0] for name in launches} == {"layer", "batch", "dropout"}
    assert len(normreg.restore(twin).changed) == len(KINDS)
    assert types(model) == {"": nn.Sequential} | {
        str(i): getattr(normreg, kind) for i, kind in enumerate(KINDS)
    }


def test_tied_modules_and_parameters(device):
    norm, other = nn.LayerNorm(4).to(device), nn.LayerNorm(4).to(device)
    other.weight = norm.weight
    model = nn.Sequential(norm, nn.Linear(4, 4).to(device), norm, other)
    report = normreg.replace(model)
    assert [change.name for change in report.changed] == ["0", "3"]
    assert model[0] is norm
    assert model[2] is norm
    assert model[3].weight is norm.weight
    assert type(norm) is type(other) is normreg.LayerNorm
    assert len(list(model.parameters())) == 5


def test_hooks_fire(device, launches):
    events = []

    def hook(event):
        return lambda *arguments: events.append(event)

    module, x = torch_layer("LayerNorm", device)
    module.register_forward_pre_hook(hook("forward pre"))
    module.register_forward_hook(hook("forward"))
    module.register_full_backward_pre_hook(hook("backward pre"))
    module.register_full_backward_hook(hook("backward"))
    module.register_state_dict_post_hook(hook("state_dict"))
    module.register_load_state_dict_pre_hook(hook("load_state_dict pre"))
    module.register_load_state_dict_post_hook(hook("load_state_dict post"))
    module.weight.register_hook(hook("weight"))
    normreg.replace(module)
    module(x.requires_grad_()).sum().backward()
    assert sorted(events[2:]) == ["backward", "backward pre", "weight"]
    assert events[:2] == ["forward pre", "forward"]
    assert launches
    events.clear()
    module.load_state_dict(module.state_dict())
    assert events == ["state_dict", "load_state_dict pre", "load_state_dict post"]


def test_hooks_may_change_what_passes(device):
    """A hook's return value replaces the output, and the gradient of the input."""
    module, x = torch_layer("LayerNorm", device)
    module.register_forward_hook(lambda module, inputs, output: output * 2)
    module.register_full_backward_hook(lambda module, dx, dy: (dx[0] * 0 + 7,))
    normreg.replace(module)
    y, dx, *_ = run(module, x)
    plain = normreg.functional.layer_norm(x, (6,), module.weight, module.bias)
    assert torch.equal(y, plain * 2)
    assert torch.equal(dx, torch.full_like(dx, 7))


class TunedLayerNorm(nn.LayerNorm):
    def forward(self, input):
        return super().forward(input) + 1


class Halve(nn.Module):
    def forward(self, weight):
        return weight / 2


def with_forward_of_its_own():
    module = nn.LayerNorm(6)
    module.forward = lambda input: input * 3
    return module


def parametrized():
    return parametrize.register_parametrization(nn.LayerNorm(6), "weight", Halve())


A_SUBCLASS = "a subclass of torch.nn.{} may compute something else"


def prepared():
    layer = nn.LayerNorm(6)
    layer.qconfig = torch.ao.quantization.default_qconfig
    return layer


def scripted():
    return torch.jit.script(nn.LayerNorm(6))


class LigerRMSNorm(nn.Module):
    """Of no class that is known, by a name that says what it is."""

    def forward(self, x):
        return x / 2


class NormedHead(nn.Sequential):
    """A container is none."""


LEFT_ALONE = {
    "prepared for quantisation": (
        prepared, "torch.nn.LayerNorm", "it is prepared for quantisation, which knows torch's classes only",
    ),
    "unknown": (
        LigerRMSNorm, "test_convert.LigerRMSNorm",
        "an unknown class: see normreg.register_layer",
    ),
    "scripted": (scripted, "torch.RecursiveScriptModule", "compiled by torch.jit: replace before"),
    "subclass": (
        lambda: TunedLayerNorm(6), "test_convert.TunedLayerNorm", A_SUBCLASS.format("LayerNorm"),
    ),
    "forward of its own": (
        with_forward_of_its_own, "torch.nn.LayerNorm", "its forward is overridden on the instance",
    ),
    "parametrized": (
        parametrized, "torch.nn.ParametrizedLayerNorm", A_SUBCLASS.format("LayerNorm"),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.jit.")
@pytest.mark.parametrize(("make", "kind", "reason"), LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_left_alone_and_named(device, launches, make, kind, reason):
    model = nn.Sequential(make()).to(device)
    cls, objects = type(model[0]), list(contents(model))
    twin = nn.Sequential(make()).to(device)
    report = normreg.replace(model)
    assert outcome(report) == ((), (Skip("0", kind, reason),))
    assert type(model[0]) is cls
    assert all(a is b for (_, a), (_, b) in zip(contents(model), objects, strict=True))
    x = torch.randn(4, 6, device=device)
    assert torch.equal(model(x), twin(x))
    assert launches == []


def test_a_forward_that_a_tool_replaced_in_the_class(device, monkeypatch):
    model = nn.Sequential(nn.LayerNorm(6), nn.RMSNorm(6)).to(device)
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, x: x * 3)
    report = normreg.replace(model)
    assert [change.name for change in report.changed] == ["1"]
    assert report.skipped == (
        Skip("0", "torch.nn.LayerNorm", f"LayerNorm.forward was replaced by {__name__}"),
    )
    assert torch.equal(model[0](torch.ones(6, device=device)), torch.full((6,), 3.0, device=device))


def test_containers_are_not_named():
    assert normreg.replace(NormedHead(nn.Linear(2, 2))).skipped == ()


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("kind", ["BatchNorm2d", "InstanceNorm2d"])
def test_a_lazy_layer_is_replaced_once_it_saw_its_input(device, kind):
    module = getattr(nn, f"Lazy{kind}")().to(device)
    report = normreg.replace(module)
    assert report.changed == ()
    assert [skip.kind for skip in report.skipped] == [f"torch.nn.Lazy{kind}"]
    assert type(module) is getattr(nn, f"Lazy{kind}")
    module(torch.randn(2, 3, 4, 4, device=device))
    assert len(normreg.replace(module).changed) == 1
    assert type(module) is getattr(normreg, kind)


class BlockDropout(nn.modules.dropout._DropoutNd):
    pass


@pytest.mark.parametrize(
    "relative",
    [
        PlainNorm(4), nn.LocalResponseNorm(2), nn.CrossMapLRN2d(2), BlockDropout(),
        normreg.DropPath(), nn.Identity(), nn.Linear(4, 4), nn.Module(),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_relatives_are_left_alone(relative):
    model = nn.Sequential(relative, nn.LayerNorm(4))
    cls, objects = type(relative), dict(vars(relative))
    report = normreg.replace(model)
    assert [change.name for change in report.changed] == ["1"]
    assert type(relative) is cls
    named = cls.__name__.startswith(("Plain", "Block", "LocalResponse"))
    assert [skip.name for skip in report.skipped] == ["0"] * named
    assert all(skip.reason == "normreg has no counterpart" for skip in report.skipped)
    assert all(vars(relative)[name] is value for name, value in objects.items())


def test_a_parametrization_of_a_replaced_layer(device, launches):
    module, x = torch_layer("LayerNorm", device)
    expected = normreg.functional.layer_norm(x, (6,), module.weight / 2, module.bias)
    normreg.replace(module)
    launches.clear()
    parametrize.register_parametrization(module, "weight", Halve())
    assert torch.equal(module(x), expected)
    assert launches == ["layer_norm_forward_kernel"]
    parametrize.remove_parametrizations(module, "weight")
    assert type(module) is normreg.LayerNorm


class Slotted(nn.Dropout):
    """Of another layout in memory, so that Python refuses to assign this class."""

    __slots__ = ("extra",)


def test_a_class_that_cannot_be_assigned_changes_nothing(device, monkeypatch):
    model = nested(device)
    was, objects = types(model), list(contents(model))
    monkeypatch.setitem(convert.COUNTERPARTS, nn.Dropout, Slotted)
    with pytest.raises(TypeError, match="object layout differs"):
        normreg.replace(model)
    assert types(model) == was
    assert all(a is b for (_, a), (_, b) in zip(contents(model), objects, strict=True))


@pytest.mark.parametrize("error_type", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("path", NESTED)
def test_an_error_anywhere_changes_nothing(device, monkeypatch, path, error_type):
    model = nested(device)
    was = types(model)
    assign = nn.Module.__setattr__

    def refuse(self, name, value):
        if name == "__class__" and self is model.get_submodule(path):
            raise error_type("refused")
        assign(self, name, value)

    for act, expected in ((normreg.replace, was), (normreg.restore, None)):
        if expected is None:
            normreg.replace(model)
            expected = types(model)
        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, "__setattr__", refuse)
            with pytest.raises(error_type, match=r"^refused$"):
                act(model)
        assert types(model) == expected


@pytest.mark.parametrize("act", [normreg.replace, normreg.restore], ids=["replace", "restore"])
@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda: nn.LayerNorm, "type"),
        (lambda: nn.LayerNorm(4).state_dict(), "OrderedDict"),
        (lambda: nn.LayerNorm(4).parameters(), "generator"),
        (lambda: [nn.LayerNorm(4)], "list"),
        (lambda: torch.randn(4), "Tensor"),
        (lambda: None, "NoneType"),
    ],
    ids=["class", "state_dict", "parameters", "list", "tensor", "None"],
)
def test_not_a_module(act, make, got):
    message = (
        f"expected a torch.nn.Module, got {got}: pass the model itself, not its output, parameters or "
        f"state_dict"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        act(make())


def test_meta_model(device):
    model = nested(torch.device("meta"))
    normreg.replace(model)
    assert {name: type(model.get_submodule(name)) for name in NESTED} == {
        name: getattr(normreg, kind) for name, kind in NESTED.items()
    }
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"meta"}
    for row in KINDS.values():
        shape = 5, *row.sample
        y = row.make().to("meta")(torch.empty(shape, device="meta"))
        assert (y.device.type, tuple(y.shape)) == ("meta", shape)
    filled = model.to_empty(device=device)
    filled.load_state_dict(nested(device).state_dict(), strict=True)
    assert filled.stem[1](torch.randn(2, 6, device=device)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_kind
def test_16_bit_models(device, launches, kind, dtype):
    """Converted before or after replace; accuracy beside torch's is for the tests of each operation."""
    module, x = torch_layer(kind, device, dtype)
    later = copy.deepcopy(module).float()
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double())
        normreg.replace(module)
        normreg.replace(later)
        torch.manual_seed(5)
        y = module(x)
        assert len(launches) >= 1
        torch.manual_seed(5)
        assert torch.equal(later.to(dtype)(x), y)
    assert y.dtype == dtype
    if "Dropout" not in kind:
        assert error(y, exact) <= 2 * unit(exact, dtype)


def cnn():
    """No bias in front of a norm: its gradient is 0, and what is computed nothing but rounding."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.GELU(), nn.Dropout(0.0), nn.Flatten(),
        nn.Linear(5 * 16, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4),
    )  # fmt: skip


def transformer():
    block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(block, 1, norm=nn.LayerNorm(8))


def gated():
    return nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 12), nn.SiLU(), nn.RMSNorm((5, 12)), nn.Linear(12, 8))


def groups():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.GroupNorm(2, 6), nn.GELU(),
        nn.Conv2d(6, 4, 3, bias=False), nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    )  # fmt: skip


MODELS = {
    "cnn": (cnn, (4, 3, 6, 6), {"batch_norm"}),
    "transformer": (transformer, (3, 5, 8), {"layer_norm"}),
    "gated": (gated, (3, 5, 8), {"layer_norm"}),
    "groups": (groups, (4, 3, 7, 7), {"group_norm", "instance_norm", "layer_norm", "batch_norm"}),
}

# Relative to the largest element. Both round differently in every layer, and three steps add that up: 50
# units of 2^-53 and of 2^-24 were seen, a wrong term shows above 1e-3. Where a GPU's convolutions round
# float32 to the 11 bits of TF32, another last bit of their input moves their result by 2^-11.
TRAINING_TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5}
TF32_TOLERANCE = 1e-2


def train(model, optimizer, batches):
    """Everything that training shows: outputs, gradients, parameters and buffers of each step."""
    seen = {}
    for step, x in enumerate(batches):
        optimizer.zero_grad()
        y = model(x)
        (y * torch.linspace(-1, 1, y.shape[-1], device=y.device, dtype=y.dtype)).square().sum().backward()
        seen |= {f"gradient of {name}, step {step}": p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        seen |= {f"{name}, step {step}": t.clone() for name, t in model.state_dict().items()}
        seen[f"output, step {step}"] = y.detach()
    model.eval()
    with torch.no_grad():
        seen["output in eval"] = model(batches[0])
    return seen


@pytest.mark.parametrize("dtype", TRAINING_TOLERANCE, ids=str)
@pytest.mark.parametrize(("make", "shape", "operations"), MODELS.values(), ids=MODELS)
def test_training_is_the_same(device, launches, make, shape, operations, dtype):
    model = make().to(device, dtype)
    plain = copy.deepcopy(model)
    # before replace, as in a user's script: what it steps must still be what the model computes with
    optimizers = [torch.optim.SGD(m.parameters(), 0.01, momentum=0.9) for m in (model, plain)]
    normreg.replace(model)
    batches = torch.randn(3, *shape, device=device, dtype=dtype)
    start = copy.deepcopy(model.state_dict())
    theirs = train(plain, optimizers[1], batches)
    assert launches == []
    ours = train(model, optimizers[0], batches)
    assert {name.split("_norm")[0] + "_norm" for name in launches} == operations
    assert any("backward" in name for name in launches)

    tolerance = TRAINING_TOLERANCE[dtype]
    if dtype == torch.float32 and device.type == "cuda" and make in (cnn, groups):
        tolerance = TF32_TOLERANCE
    for name, expected in theirs.items():
        limit = tolerance * expected.double().abs().max().item()
        assert error(ours[name], expected.double()) <= limit, name
    for name, parameter in model.named_parameters():
        assert (parameter - start[name]).abs().max() > 1e-4, f"{name} was not trained"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("padded", [False, True], ids=["dense", "padded"])
def test_transformer_in_eval_takes_torchs_fast_path(device, launches, padded):
    """It never calls the layers inside, so only the encoder's last one launches."""
    model = transformer().to(device).eval()
    x = torch.randn(3, 5, 8, device=device)
    mask = torch.arange(5, device=device)[None, :] >= torch.tensor([5, 3, 4], device=device)[:, None]
    options = {"src_key_padding_mask": mask} if padded else {}
    with torch.no_grad():
        expected = model(x, **options)
        normreg.replace(model)
        y = model(x, **options)
    assert launches == ["layer_norm_forward_kernel"]
    # both are layer norms of the same input, in float32
    assert error(y, expected.double()) <= 4 * unit(expected, torch.float32)


GOLDEN = """\
2 layers changed, with 5.71 % of 140 parameters
name        was                   is
----------  --------------------  -------------------
body.norm   torch.nn.BatchNorm2d  normreg.BatchNorm2d
body.drop1  torch.nn.Dropout      normreg.Dropout

2 layers left alone
name  class                        why
----  ---------------------------  -----------------------------------------------------------
tail  test_convert.TunedLayerNorm  a subclass of torch.nn.LayerNorm may compute something else
own   torch.nn.LayerNorm           its forward is overridden on the instance"""


def test_printed_report(capsys):
    body = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), drop1=nn.Dropout()))
    model = nn.Sequential(OrderedDict(body=body, tail=TunedLayerNorm(4), own=with_forward_of_its_own()))
    print(normreg.replace(model))
    assert capsys.readouterr().out == GOLDEN + "\n"
    print(normreg.replace(nn.Linear(2, 2)))
    assert capsys.readouterr().out == "0 layers changed\n"


SELECTIONS = {
    "a pattern": ("stem.*", {"stem.1", "stem.2"}),
    "a pattern with one character": ("groups.?", {f"groups.{i}" for i in range(5)}),
    "a class": (nn.LayerNorm, {"stem.1"}),
    "a base class": (nn.modules.batchnorm._BatchNorm, {"blocks.0", "heads.a", "heads.b.0", "groups.4"}),
    "a function": (lambda name, module: name.endswith(".a"), {"heads.a"}),
    "a function that never agrees": (lambda name, module: False, set()),
    "several": (
        ["stem.1", nn.RMSNorm, lambda name, module: name == "heads.a"],
        {"stem.1", "stem.2", "heads.a"},
    ),
}


@pytest.mark.parametrize(("selected", "names"), SELECTIONS.values(), ids=SELECTIONS)
def test_include_and_exclude(device, selected, names):
    for arguments, expected in (
        (dict(include=selected), names),
        (dict(exclude=selected), set(NESTED) - names),
        (dict(include=selected, exclude="stem.2"), names - {"stem.2"}),
    ):
        model = nested(device)
        others = {name: type(module) for name, module in model.named_modules() if name not in expected}
        report = normreg.replace(model, **arguments)
        assert {change.name for change in report.changed} == expected
        assert all(type(model.get_submodule(name)) is getattr(normreg, NESTED[name]) for name in expected)
        assert all(type(model.get_submodule(name)) is cls for name, cls in others.items())
        reasons = {skip.name: skip.reason for skip in report.skipped}
        assert {reasons[name] for name in set(NESTED) - expected} <= {"excluded", "not included"}


def test_a_selection_adds_to_an_earlier_one(device):
    model = nested(device)
    normreg.replace(model, include="stem.*")
    report = normreg.replace(model, include=["stem.1", "heads.*"])
    assert [change.name for change in report.changed] == ["heads.a", "heads.b.0"]
    assert type(model.stem[2]) is normreg.RMSNorm
    assert "stem.2" not in {skip.name for skip in report.skipped}


def test_a_dry_run_changes_nothing_and_says_what_would_be(device):
    model = nested(device)
    was, objects = types(model), list(contents(model))
    would = normreg.replace(model, include="stem.*", dry_run=True)
    assert types(model) == was
    assert all(a is b for (_, a), (_, b) in zip(contents(model), objects, strict=True))
    lines = str(would).splitlines()
    assert lines[0].startswith("2 layers would be changed, with ")
    assert lines[1].split() == ["name", "was", "would", "be"]
    did = normreg.replace(model, include="stem.*")
    assert (would.changed, would.skipped) == (did.changed, did.skipped)


def test_the_share_of_parameters():
    """Shared ones count once; lazy ones do not exist; those of the meta device do."""
    norm = nn.LayerNorm(4, device="meta")
    model = nn.Sequential(norm, norm, nn.LazyLinear(3), nn.Linear(4, 4, bias=False), nn.LayerNorm(4))
    model[4].weight = norm.weight
    assert normreg.replace(model, include="0").parameters == (8, 8 + 16 + 4)
    assert normreg.replace(model).parameters == (8, 8 + 16 + 4)
    assert str(normreg.replace(nn.Dropout())).startswith("1 layer changed\n")
    assert normreg.restore(model).parameters == (12, 8 + 16 + 4)


def test_the_fast_path_is_noted():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2)
    report = normreg.replace(model)
    note = (
        "2 torch.nn.TransformerEncoderLayers: in evaluation and without gradients, torch's fast path "
        "computes what is inside, changed layers too; torch.backends.mha.set_fastpath_enabled(False) "
        "stops that"
    )
    assert report.notes == (note,)
    assert " ".join(str(report).split()).endswith(note)
    assert max(map(len, str(report).splitlines())) <= 100
    assert normreg.replace(model).notes == ()
    assert normreg.replace(nn.TransformerDecoderLayer(8, 2, 8)).notes == ()


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize(
    ("selection", "error_type", "message"),
    [
        ("stemm.*", ValueError, "'stemm.*' matches none of the 16 of this model; nearest: stem."),
        ("stem", ValueError, "'stem' matches none of the 16 of this model; try stem.*"),
        (["stem.*", "nothing"], ValueError, "'nothing' matches none"),
        (nn.Conv2d, ValueError, "none of torch.nn.modules.conv.Conv2d among the 16"),
        (nn.LazyBatchNorm1d, ValueError, "none of torch.nn.modules.batchnorm.LazyBatchNorm1d"),
        (3, TypeError, "got a int: 3"),
        ({"stem.1": True}, TypeError, "got a dict"),
    ],
    ids=str,
)
def test_a_selection_of_nothing(device, argument, selection, error_type, message):
    model = nested(device)
    was = types(model)
    with pytest.raises(error_type, match=re.escape(message)):
        normreg.replace(model, **{argument: selection})
    assert types(model) == was


def test_an_error_in_a_selection_changes_nothing(device):
    model = nested(device)
    was = types(model)

    def refuse(name, module):
        raise KeyError(name)

    with pytest.raises(KeyError, match=r"stem\.1"):
        normreg.replace(model, include=refuse)
    assert types(model) == was


def test_a_thousand_layers_in_less_than_a_second():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)) for _ in range(1000)))
    begin = time.perf_counter()
    report = normreg.replace(model, include="*.1", exclude=lambda name, module: name == "7.1")
    assert time.perf_counter() - begin < 1
    assert (len(report.changed), len(report.skipped)) == (999, 1)


def test_a_replaced_model_is_a_model_built_with_normreg(device):
    """The same code runs either way, so results are bit-equal."""
    for kind, row in KINDS.items():
        module, x = torch_layer(kind, device)
        normreg.replace(module)
        built = row.make().to(device)
        built.load_state_dict(module.state_dict(), strict=True)
        assert_all_equal(run(built, x), run(module, x))

"""`replace` changes the class of each layer that has a counterpart, and nothing else."""

import copy
import re
import time

import pytest
import torch
from nested import NESTED, assert_all_equal, contents, nested, outcome, run, types
from operations import KINDS, every_kind, torch_layer
from support.reference import error, unit
from torch import nn

import normreg
from normreg.models import registry
from normreg.models.report import Change, Report, Skip


def tensor_facts(model):
    return [
        (name, t.data_ptr(), t._version, t.requires_grad, id(t.grad))
        for name, t in [*model.named_parameters(), *model.named_buffers()]
    ]


@every_kind
def test_kernels_run_after_replace_and_not_after_restore(device, launches, kind):
    module, x = torch_layer(kind, device)
    run(module, x)
    assert launches == []
    normreg.replace(module)
    run(module, x)
    assert len(launches) >= 2
    kernels = (*KINDS[kind].kernels.split(), "column_sums")
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
            Skip("heads.b.1", "nested.PlainNorm", "normreg has no counterpart"),
            Skip("last", "nested.PlainNorm", "normreg has no counterpart"),
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

    marks = [vars(model.get_submodule(name)).pop("_replaced_by_normreg", None) for name in NESTED]
    assert marks == [None if undo else True] * len(NESTED)
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


class Slotted(nn.Dropout):
    """A dropout with slots, whose class Python refuses to assign because its layout in memory differs."""

    __slots__ = ("extra",)


def test_a_class_that_cannot_be_assigned_changes_nothing(device, monkeypatch):
    model = nested(device)
    was, objects = types(model), list(contents(model))
    monkeypatch.setitem(registry.COUNTERPARTS, nn.Dropout, Slotted)
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
    """A model may be converted to 16 bits before or after `replace`."""
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

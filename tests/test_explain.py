import copy
import inspect
import re
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normreg
from normreg.functional import dispatch
from normreg.inspection import explain as explanation
from normreg.models.report import Skip


def rows(report):
    return [(call.name, call.layer, call.path) for call in report]


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout2d(0.25), nn.Flatten(),
        nn.Linear(64, 5), nn.BatchNorm1d(5, momentum=None), nn.Dropout(0.25), nn.LayerNorm(5), nn.RMSNorm(5),
    )  # fmt: skip


def test_every_layer_in_call_order(device):
    model = cnn().to(device)
    normreg.replace(model)
    report = normreg.explain(model, torch.randn(2, 3, 6, 6, device=device))
    kinds = {"1": "BatchNorm2d", "3": "Dropout2d", "6": "BatchNorm1d", "7": "Dropout", "8": "LayerNorm"}
    assert rows(report) == [
        (n, f"normreg.{kind}", "kernel") for n, kind in (kinds | {"9": "RMSNorm"}).items()
    ]
    assert [call.shape for call in report] == [(2, 4, 4, 4)] * 2 + [(2, 5)] * 4
    assert {(call.dtype, call.device, call.why) for call in report} == {(torch.float32, device, "")}
    assert report.not_called == report.not_replaced == ()


def test_the_reason_is_dispatchs(device, monkeypatch):
    model = normreg.LayerNorm(4, device=device)
    x = torch.empty(0, 4, device=device)
    (call,) = normreg.explain(model, x)
    reason = dispatch.layer_norm(x, (4,), model.weight, model.bias, 1e-5)
    assert (call.name, call.path, call.why) == ("(the model itself)", "torch", reason)
    monkeypatch.setattr(dispatch, "_torch_reason", lambda x, others: "of a moon in eclipse")
    (call,) = normreg.explain(model, torch.randn(3, 4, device=device))
    assert (call.path, call.why) == ("torch", "of a moon in eclipse")


def test_every_decision_is_heard(device):
    """What is asked of dispatch, explain hears, in operations added later, too."""
    names = ("functional", "fused_batch_norm", "fused_dropout", "synchronized", "l2_penalty")
    askers = [sys.modules[f"normreg.{name}"] for name in names]
    asked = {name for m in askers for name in re.findall(r"dispatch\.(\w+)\(", inspect.getsource(m))}
    heard = []
    before = dict(vars(dispatch))
    with dispatch.watched(lambda operation, x, reason: heard.append(operation)):
        changed = {name for name, value in vars(dispatch).items() if value is not before[name]}
    assert asked == changed
    assert dict(vars(dispatch)) == before
    assert heard == []


def test_dropout_that_does_nothing(device):
    for module, x in (
        (normreg.Dropout(0.5).eval(), torch.ones(3, 4, device=device)),
        (normreg.Dropout1d(0.5).eval(), torch.ones(3, 4, device=device)),
        (normreg.Dropout1d(0.5).eval(), torch.ones(2, 3, 4, device=device)[0]),
        (normreg.AlphaDropout(0.5).eval(), torch.ones(3, 4, device=device)),
        (normreg.DropPath(), torch.ones(3, 4, device=device)),
    ):
        (call,) = normreg.explain(module, x)
        assert (call.path, call.why) == ("nothing", "it returns its input")
        assert (call.shape, call.dtype, call.device) == ((3, 4), torch.float32, device)
    (call,) = normreg.explain(normreg.Dropout(0.0), x)
    assert (call.path, call.why) == ("torch", "p is 0.0: nothing is dropped")


def test_the_mode_around_the_call_decides(device):
    """In place of a leaf that requires grad: an error, unless no gradient is recorded."""
    module = normreg.Dropout(0.5, inplace=True)
    leaf = torch.ones(3, 4, device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place"):
        normreg.explain(module, leaf)
    with torch.no_grad():
        assert rows(normreg.explain(module, leaf)) == [("(the model itself)", "normreg.Dropout", "kernel")]
    (call,) = normreg.explain(module, leaf * 2)
    assert call.path == "kernel"
    (call,) = normreg.explain(module, (leaf * 2)[:2])
    assert (call.path, call.why[:30]) == ("torch", "a leaf that requires grad, of ")
    assert (leaf == 1).all()


def test_strides_of_the_copies(device):
    """Decisions depend on them, of inputs and of buffers."""
    x = torch.randn(2, 3, 4, 4, device=device).contiguous(memory_format=torch.channels_last)
    for given in (x, x[:, :, 1:], x[:, :2]):
        (call,) = normreg.explain(normreg.RMSNorm(4, device=device), given)
        assert "channels_last" in call.why
    module = normreg.BatchNorm2d(3, device=device)
    module._buffers["running_mean"] = torch.zeros(6, device=device)[::2]
    (call,) = normreg.explain(module, x)
    assert call.why == "a running statistic is not contiguous"
    (call,) = normreg.explain(
        normreg.LayerNorm(4, device=device), torch.ones(1, 4, device=device).expand(3, 4)
    )
    assert call.path == "kernel"


def test_layers_that_no_call_reaches(device):
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 1, norm=nn.LayerNorm(8)
    ).to(device)
    normreg.replace(model)
    x = torch.randn(2, 3, 8, device=device)
    names = {name for name, module in model.named_modules() if isinstance(module, explanation.LAYERS)}
    assert {call.name for call in normreg.explain(model, x)} == names
    model.eval()
    with torch.no_grad():
        report = normreg.explain(model, x)
    assert rows(report) == [("norm", "normreg.LayerNorm", "kernel")]
    assert {skip.name for skip in report.not_called} == names - {"norm"}
    reason = (
        "the fast path of layers.0 computes it; torch.backends.mha.set_fastpath_enabled(False) stops that"
    )
    assert {skip.reason for skip in report.not_called} == {reason}


class Chooser(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = normreg.LayerNorm(4), normreg.LayerNorm(4)
        self.still = nn.LayerNorm(4)
        self.tied = self.used

    def forward(self, x, *, twice=False):
        x = normreg.functional.dropout(self.used(x), 0.5, self.training)
        return self.tied(input=x) if twice else x


def test_functions_keywords_ties_and_what_is_left(device):
    model = Chooser().to(device)
    x = torch.randn(3, 4, device=device)
    report = normreg.explain(model, x, twice=True)
    assert rows(report) == [
        ("used", "normreg.LayerNorm", "kernel"),
        ("(the model itself)", "normreg.functional.dropout", "kernel"),
        ("used", "normreg.LayerNorm", "kernel"),
    ]
    why = "(the model itself), a test_explain.Chooser, did not call it"
    assert report.not_called == (Skip("unused", "normreg.LayerNorm", why),)
    assert report.not_replaced == (Skip("still", "torch.nn.LayerNorm", "not replaced: call normreg.replace"),)
    assert len(list(normreg.explain(model, x=x))) == 2
    normreg.replace(model)
    assert normreg.explain(model, x).not_replaced == ()


class Messy(nn.Module):
    """Everything that a forward may do to its module."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.plain = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.words = nn.Embedding(10, 4, max_norm=0.1)
        self.register_buffer("step", torch.zeros(()))
        self.cache, self.history, self.table, self.count = torch.zeros(4), [], {}, 0

    def forward(self, x, indices):
        self.count += 1
        self.history.append(self.count)
        self.table[self.count] = x
        self.new = x
        self.step = self.step + 1
        self.cache.add_(1)
        self.register_buffer("late", x)
        x.mul_(2)
        y = self.drop(self.plain(self.norm(x)) + self.words(indices))
        self.eval()
        if self.history[-1] > 5:
            raise RuntimeError("too often")
        return y


def everything(model):
    """Every attribute and every entry of dictionaries and lists, and the bits and versions of tensors."""
    seen = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            seen[path, name] = id(value)
            entries = value.items() if isinstance(value, dict) else ()
            entries = enumerate(value) if isinstance(value, list) else entries
            for key, entry in [(None, value), *entries]:
                seen[path, name, key] = id(entry)
                if isinstance(entry, torch.Tensor):
                    seen[path, name, key, "tensor"] = (entry._version, entry.tolist(), id(entry.grad))
    return seen


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("replaced", [False, True], ids=["torch", "normreg"])
def test_nothing_is_left_behind(device, replaced, raises):
    model = Messy().to(device)
    model.cache = model.cache.to(device)
    if replaced:
        normreg.replace(model)
    fired = []
    model.norm.register_forward_hook(lambda *_: fired.append("forward"))
    model.norm.register_full_backward_hook(lambda *_: fired.append("backward"))
    model.norm.weight.grad = torch.ones(4, device=device)
    model.count = 5 if raises else 0
    x, indices = torch.randn(3, 4, device=device), torch.tensor([1, 2, 3], device=device)
    leaf = torch.randn(3, 4, device=device, requires_grad=True)
    part = leaf * 1
    before, state = everything(model), torch.get_rng_state()
    inputs = x.clone(), part.detach().clone(), x._version, part._version, part.grad_fn
    devices = torch.cuda.device_count() if device.type == "cuda" else 0
    states = [torch.cuda.get_rng_state(i) for i in range(devices)]
    call = torch.nn.Module.__call__
    for given in (x, part):
        if raises:
            with pytest.raises(RuntimeError, match=r"^too often$"):
                normreg.explain(model, given, indices)
        else:
            normreg.explain(model, given, indices)
    assert everything(model) == before
    assert model.training
    assert model.norm.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(torch.cuda.get_rng_state(i), s) for i, s in enumerate(states))
    assert torch.equal(x, inputs[0])
    assert torch.equal(part, inputs[1])
    assert (x._version, part._version, part.grad_fn) == inputs[2:]
    assert leaf.grad is None
    assert fired == ["forward"] * 2
    assert torch.nn.Module.__call__ is call
    assert dispatch.layer_norm.__closure__ is None


def test_training_goes_on_as_without_it(device):
    """Also between a forward and its backward, of which torch's layers keep the buffers."""
    results = []
    for explained in (False, True):
        torch.manual_seed(3)
        model = cnn().to(device)
        normreg.replace(model[6:])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for x in torch.randn(3, 2, 3, 6, 6, device=device):
            y = model(x)
            if explained:
                normreg.explain(model, x)
            y.square().sum().backward()
            optimizer.step()
        model.eval()
        y = model(x)
        if explained:
            normreg.explain(model.train(), x)
        y.sum().backward()
        results.append([y.detach(), *model.state_dict().values(), *(p.grad for p in model.parameters())])
    for explained, plain in zip(*reversed(results), strict=True):
        assert torch.equal(explained, plain)


@pytest.mark.filterwarnings("ignore:`torch.jit.")
def test_scripted_parts(device):
    model = nn.Sequential(torch.jit.script(nn.BatchNorm1d(4)), normreg.LayerNorm(4)).to(device)
    state = copy.deepcopy(model.state_dict())
    assert rows(normreg.explain(model, torch.randn(3, 4, device=device))) == [
        ("1", "normreg.LayerNorm", "kernel")
    ]
    for name, expected in state.items():
        assert torch.equal(model.state_dict()[name], expected)


@pytest.mark.parametrize("whole", [True, False], ids=["model", "part"])
def test_compiled_models_are_run_in_eager_mode(device, whole):
    torch._dynamo.reset()
    model = nn.Sequential(normreg.LayerNorm(4), normreg.Dropout()).to(device)
    if whole:
        model = torch.compile(model, backend="eager")
    else:
        model[0].compile(backend="eager")
    x = torch.randn(3, 4, device=device)
    report = normreg.explain(model, x)
    assert [call.path for call in report] == ["kernel", "kernel"]
    assert report.compiled
    assert str(report).endswith("without torch.compile: these are the paths of eager mode.")
    assert not normreg.explain(normreg.LayerNorm(4, device=device), x).compiled
    model(x)
    torch._dynamo.reset()


def test_other_threads_are_not_in_it(device):
    other, x = normreg.LayerNorm(4, device=device), torch.randn(0, 4, device=device)

    class Waiting(nn.Module):
        def forward(self, x):
            thread = threading.Thread(target=other, args=(x,))
            thread.start()
            thread.join()
            return x

    assert rows(normreg.explain(Waiting(), x)) == []


def test_meta_and_transformed_models(device):
    (call,) = normreg.explain(normreg.BatchNorm1d(4, device="meta"), torch.empty(3, 4, device="meta"))
    assert (call.path, call.why) == ("torch", "there is no kernel for meta tensors")
    with pytest.raises(AttributeError):
        normreg.explain(normreg.Dropout1d(), [1.0])


def message(text):
    return f"^{re.escape(text)}$"


def test_wrong_arguments(device):
    x = torch.randn(3, 4, device=device)
    text = (
        "expected a torch.nn.Module, got {}: pass the model itself, not its output, parameters or state_dict"
    )
    for wrong, got in ((nn.LayerNorm, "type"), (x, "Tensor"), (F.layer_norm, "function")):
        with pytest.raises(TypeError, match=message(text.format(got))):
            normreg.explain(wrong, x)
    text = (
        "expected the inputs that normreg.LayerNorm is called with, got others ({}): what follows the model "
        "is passed on, as in explain(model, x)"
    )
    for inputs, options, what in (
        ((), {}, "missing a required argument: 'input'"),
        ((x, x), {}, "too many positional arguments"),
        ((x,), dict(y=1), "got an unexpected keyword argument 'y'"),
    ):
        with pytest.raises(TypeError, match=message(text.format(what))):
            normreg.explain(normreg.LayerNorm(4), *inputs, **options)
    text = (
        "expected a model whose parameters exist, got 0, a torch.nn.LazyBatchNorm1d, which its first call "
        "completes: call the model once before explain"
    )
    with pytest.raises(ValueError, match=message(text)):
        normreg.explain(nn.Sequential(nn.LazyBatchNorm1d()), x)


GOLDEN = """\
3 calls: 1 kernel (33.3 %), 1 torch, 1 nothing
name  layer              input              path     why
----  -----------------  -----------------  -------  --------------------
0     normreg.LayerNorm  float32 [3, 4] {0}  kernel
1     normreg.Dropout    float32 [3, 4] {0}  torch    p is 0.0: nothing is dropped
2     normreg.Dropout    float32 [3, 4] {0}  nothing  it returns its input

1 layer never called by these inputs
name    class             why
------  ----------------  ---------------------------------------------------
3.norm  normreg.LayerNorm  3, a test_explain.Idle, did not call it

1 layer still torch's
name  class             why
----  ----------------  ----------------------------------
4     torch.nn.Dropout  not replaced: call normreg.replace"""


class Idle(nn.Identity):
    def __init__(self):
        super().__init__()
        self.norm = normreg.LayerNorm(4)


def test_printed(device, capsys):
    model = nn.Sequential(
        normreg.LayerNorm(4), normreg.Dropout(0.0), normreg.Dropout().eval(), Idle(), nn.Dropout()
    ).to(device)
    print(normreg.explain(model, torch.randn(3, 4, device=device)))
    # widths of columns depend on the name of the device
    words = [re.sub(r" +", " ", re.sub("-+", "-", line)) for line in capsys.readouterr().out.splitlines()]
    expected = GOLDEN.format(device).splitlines()
    assert words == [re.sub(r" +", " ", re.sub("-+", "-", line)) for line in expected]
    print(normreg.explain(nn.Identity(), 1))
    assert capsys.readouterr().out == "0 calls\n"

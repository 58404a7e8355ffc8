"""`explain`: which layers it names, in which order, and the reason that it gives for each."""

import re

import pytest
import torch
import torch.nn.functional as F
from explained import cnn, rows
from operations import OURS, every_function
from torch import nn

import normreg
from normreg.functional import dispatch
from normreg.inspection import explain as explanation
from normreg.models.report import Skip


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
    monkeypatch.setattr(dispatch, "tensor_reason", lambda x, others: "of a moon in eclipse")
    (call,) = normreg.explain(model, torch.randn(3, 4, device=device))
    assert (call.path, call.why) == ("torch", "of a moon in eclipse")


DROPOUTS = ["dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "drop_path"]
SHARED_DECISIONS = dict.fromkeys(DROPOUTS, "dropout") | {"drop_path_add": "dropout_add"}


@every_function
def test_every_decision_is_heard(device, row):
    """`explain` hears every question to dispatch, also of operations added later."""
    heard, inputs = [], row.inputs(device, torch.float32)
    with dispatch.watched(lambda operation, x, reason: heard.append((operation, x, reason))):
        row(OURS, *inputs)
    assert bool(heard) is row.launches
    assert {operation for operation, _, _ in heard} <= {SHARED_DECISIONS.get(row.name, row.name)}
    del heard[:]
    row(OURS, *inputs)
    assert heard == []


def test_every_listener_hears(device):
    heard = []
    with (
        dispatch.watched(lambda operation, x, reason: heard.append(("outer", operation, x, reason))),
        dispatch.watched(lambda operation, x, reason: heard.append(("inner", operation, x, reason))),
    ):
        x = torch.ones(0, 4, device=device)
        normreg.functional.layer_norm(x, (4,))
    assert heard == [(who, "layer_norm", x, "the input is empty") for who in ("outer", "inner")]
    assert dispatch.LISTENERS == []


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
    """Writing into a leaf that requires grad is an error, unless no gradient is recorded."""
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
    """Copies keep the strides of inputs and buffers, on which decisions depend."""
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
        "expected the inputs that normreg.LayerNorm is called with, and these are not ({}): give what "
        "model(...) is given, as in explain(model, x)"
    )
    for inputs, options, what in (
        ((), {}, "missing a required argument: 'input'"),
        ((x, x), {}, "too many positional arguments"),
        ((x,), dict(y=1), "got an unexpected keyword argument 'y'"),
    ):
        with pytest.raises(TypeError, match=message(text.format(what))):
            normreg.explain(normreg.LayerNorm(4), *inputs, **options)
    text = (
        "expected a model whose parameters exist, and those of 0, a torch.nn.LazyBatchNorm1d, are made by "
        "its first call: call model(x) once before explain(model, x)"
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

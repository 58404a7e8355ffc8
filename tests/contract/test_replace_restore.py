"""After `replace` and `restore`: checkpoints, copies, tied modules, hooks and training are as before."""

import copy
import io
import re

import pytest
import torch
from nested import assert_all_equal, groups, nested, run, types
from operations import KINDS, every_kind, torch_layer
from support.duplicates import every_duplicate
from support.reference import error, unit
from torch import nn

import normreg


def assert_states_equal(state, expected):
    assert list(state) == list(expected)
    assert_all_equal(state.values(), expected.values())


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
    """Checkpoints of torch 0.4 and older have no counter: the layer keeps its own."""
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
    assert {name.split("_")[0] for name in launches} == {"layer", "batch", "dropout", "column"}
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


def cnn():
    """A network without biases in front of norms: their gradient is 0, and what is computed only rounding."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.GELU(),
        nn.Dropout(0.0),
        nn.Flatten(),
        nn.Linear(5 * 16, 8, bias=False),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.Linear(8, 4),
    )


def transformer():
    block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(block, 1, norm=nn.LayerNorm(8))


def gated():
    return nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 12), nn.SiLU(), nn.RMSNorm((5, 12)), nn.Linear(12, 8))


MODELS = {
    "cnn": (cnn, (4, 3, 6, 6), {"batch_norm"}),
    "transformer": (transformer, (3, 5, 8), {"layer_norm", "column_sums"}),
    "gated": (gated, (3, 5, 8), {"layer_norm", "column_sums"}),
    "groups": (groups, (4, 3, 7, 7), {"group_norm", "instance_norm", "batch_norm", "column_sums"}),
}

# Relative to the largest element. Both round differently in every layer, and three steps add that up: 50
# units of 2^-53 and of 2^-24 were seen, a wrong term shows above 1e-3. Where a GPU's convolutions round
# float32 to the 11 bits of TF32, another last bit of their input moves their result by 2^-11.
TRAINING_TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5}
TF32_TOLERANCE = 1e-2


def train(model, optimizer, batches):
    """Outputs, gradients, parameters and buffers of each step of training."""
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
    families = {re.match("([a-z]+_norm|column_sums)_", name)[1] for name in launches}
    assert families == operations
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
    """torch's fast path never calls the layers inside, so only the encoder's last norm launches."""
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

"""torch.onnx: `onnx_table` makes nodes of every operator of ours; onnxruntime computes the same with them."""

import functools
import importlib.util

import pytest
import torch
from onnx_programs import Together, assert_same, exported, in_reference, in_runtime, op_types, updated
from operations import FUNCTIONS, LAYERS, TORCH, Called
from support.reference import leave_initial_values
from torch import nn

import normreg
from normreg.functional import layer_norm

pytestmark = pytest.mark.filterwarnings("ignore:Exporting a model while it is in training mode:UserWarning")
OLDEST, GROUPS, RMS = (
    18,
    21,
    23,
)  # opsets: the oldest that torch translates to, and those that have these norms
BATCH = 6
ONE_NODE = {
    "BatchNorm1d": "BatchNormalization",
    "BatchNorm2d": "BatchNormalization",
    "InstanceNorm2d": "InstanceNormalization",
    "LayerNorm": "LayerNormalization",
    "GroupNorm": "GroupNormalization",
    "RMSNorm": "RMSNormalization",
}
MUTABLE = {"batch_norm", "batch_norm_act", "instance_norm_update_running", "sync_batch_norm"}


@pytest.fixture(autouse=True)
def guarded_memory():
    """Guards nothing: what torch.export itself allocates must not be moved between guard bands."""


def layer_of(kind, device, dtype=torch.float32):
    layer = LAYERS[kind].make().to(device, dtype).eval()
    leave_initial_values(layer)
    return layer


@functools.cache
def layers_in_runtime(opset, device):
    """{layer's name: results of onnxruntime, and ours}, for a batch of another size than the example's."""
    layers = {name: layer_of(name, device) for name in LAYERS}

    def inputs(batch):
        return tuple(torch.randn(batch, *LAYERS[name].sample, device=device) for name in layers)

    model, batch = Together(layers.values()), {0: torch.export.Dim("batch")}
    program = torch.export.export(model, inputs(BATCH), dynamic_shapes=((batch,) * len(layers),))
    program = exported(program, (), opset)
    given = inputs(BATCH + 3)
    return dict(zip(layers, zip(in_runtime(program, given), model(*given), strict=True)))


@pytest.mark.place("torch.onnx")
@pytest.mark.parametrize("opset", [OLDEST, RMS])
@pytest.mark.parametrize("key", LAYERS)
def test_layers(device, key, opset):
    ours, expected = layers_in_runtime(opset, device)[key]
    assert_same([ours], expected)


@pytest.mark.place("torch.onnx")
@pytest.mark.some(12)
@pytest.mark.parametrize("opset", [OLDEST, RMS])
@pytest.mark.parametrize("key", sorted(FUNCTIONS.keys() - {"l2_penalty"}))  # which has no operator of ours
def test_functions(device, key, opset):
    """A function computes what torch's does, or draws numbers; or the error says what it would update."""
    row = FUNCTIONS[key]
    inputs = [t.detach() for t in row.inputs(device)]
    program = torch.export.export(Called(row), tuple(inputs))
    if names := updated(program):
        with pytest.raises(RuntimeError, match=f"with {', '.join(names)}: call model.eval"):
            exported(program, (), opset)
        return
    ours = in_runtime(exported(program, (), opset), inputs)
    expected = row(TORCH, *inputs)
    if row.draws:
        assert [y.shape for y in ours] == [expected.shape]
    else:
        assert_same(ours, expected)


@pytest.mark.place("torch.onnx")
@pytest.mark.parametrize("kind", ONE_NODE)
def test_one_node_a_norm(device, kind):
    layer, x = layer_of(kind, device), torch.randn(BATCH, *LAYERS[kind].sample, device=device)
    opset = {"GroupNorm": GROUPS, "RMSNorm": RMS}.get(kind, OLDEST)
    program = exported(layer, (x,), opset)
    assert op_types(program) == [ONE_NODE[kind]]
    assert_same(in_runtime(program, [x]), layer(x))


@pytest.mark.parametrize("kind", ["GroupNorm", "InstanceNorm2d", "LayerNorm2d"])
def test_images_of_any_size(device, kind):
    layer, channels = layer_of(kind, device), LAYERS[kind].sample[0]
    small, large = (torch.randn(3, channels, *image, device=device) for image in ((6, 7), (9, 5)))
    of_any = {dim: torch.export.Dim(f"size{dim}") for dim in (0, 2, 3)}
    program = exported(layer, (small,), OLDEST, dynamic_shapes=(of_any,))
    assert_same(in_runtime(program, [large]), layer(large))


@pytest.mark.some(4)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ONE_NODE)
def test_16_bits_are_computed_in_float32(device, kind, dtype):
    """By a node that says so, or of what was made float32; x has a mean that 16 bits could not add up."""
    layer, x = layer_of(kind, device, dtype), torch.randn(8, *LAYERS[kind].sample, device=device) + 4
    x = x.to(dtype)
    program = exported(layer, (x,), RMS)
    assert op_types(program) in ([ONE_NODE[kind]], ["Cast", ONE_NODE[kind], "Cast"])
    (ours,), expected = in_reference(program, [x]), layer(x).double().cpu()
    assert (ours - expected).abs().max() <= 3 * torch.finfo(dtype).eps * expected.abs().max()


def test_dropout_in_training_is_onnxs(device):
    """With random numbers of its own, as torch's is."""
    x = torch.rand(64, 512, device=device) + 1
    program = exported(normreg.Dropout(0.25), (x,), OLDEST)
    assert op_types(program) == ["Dropout"]
    (y,) = in_runtime(program, [x])
    assert ((y == 0).double().mean() - 0.25).abs() < 0.02
    torch.testing.assert_close(y[y != 0], x.cpu()[y != 0] / 0.75)


def test_dropout_of_samples(device):
    x = torch.rand(256, 8, device=device) + 1
    (y,) = in_runtime(exported(normreg.DropPath(0.25), (x,), OLDEST), [x])
    dropped = y == 0
    assert 0.1 < dropped.double().mean() < 0.4
    assert torch.equal(dropped.any(1), dropped.all(1))
    torch.testing.assert_close(y[~dropped], x.cpu()[~dropped] / 0.75)


def test_alpha_dropout(device):
    """Mean and variance are kept, and what is dropped is alike."""
    x = torch.randn(256, 256, device=device)
    (y,) = in_runtime(exported(normreg.AlphaDropout(0.25), (x,), OLDEST), [x])
    _, counts = y.unique(return_counts=True)
    assert (counts.max() / y.numel() - 0.25).abs() < 0.02
    torch.testing.assert_close(torch.stack([y.mean(), y.var()]), torch.tensor([0.0, 1.0]), rtol=0, atol=0.05)


def in_float8(x, weight, bias):
    y, scale = layer_norm(x, (8,), weight, bias, out_dtype=torch.float8_e4m3fn)
    return y.float(), scale


def test_float8(device, monkeypatch):
    monkeypatch.setattr("normreg.functional.float8.supported", lambda device: True)
    inputs = [torch.randn(4, 8, device=device), *torch.randn(2, 8, device=device)]
    program = torch.export.export(Function(in_float8), tuple(inputs))
    assert [str(n.target) for n in program.graph.nodes][3] == "normreg.layer_norm_float8.default"
    ours, expected = in_runtime(exported(program, (), 19), inputs), in_float8(*inputs)
    torch.testing.assert_close(ours[1], expected[1].cpu())
    assert ((ours[0] - expected[0].cpu()).abs() <= expected[0].abs().cpu() / 8).all()  # a unit, at a tie
    with pytest.raises(RuntimeError, match=r"expected opset_version to be at least 19 .*, got 18: pass"):
        exported(program, (), OLDEST)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def test_every_operator_has_nodes():
    """Those that update an argument have none; where they are given nothing to update, they are others."""
    names = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if "normreg::" in name}
    forward = {name for name in names if not name.endswith("_backward")}
    table = normreg.onnx_table()
    assert {operator.name() for operator in table} == {f"normreg::{name}" for name in forward - MUTABLE}
    mutable = {name for name in forward if getattr(torch.ops.normreg, name).default._schema.is_mutable}
    assert mutable == MUTABLE


class Network(nn.Module):
    """A network of images, with a block of a transformer behind."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), normreg.BatchNormAct2d(8))
        self.norms = nn.Sequential(nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True))
        block = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.RMSNorm(8), nn.Dropout(0.1), nn.Linear(8, 4))

    def forward(self, images):
        return self.head(self.blocks(self.norms(self.stem(images)).flatten(2).mT).mean(1))


def test_a_model(device):
    model = Network()
    normreg.replace(model)
    model.to(device).eval()
    leave_initial_values(model)
    images = torch.randn(2, 3, 4, 4, device=device)
    program = exported(model, (images,), RMS, dynamic_shapes=({0: torch.export.Dim("batch")},))
    norms = {name for name in op_types(program) if name.endswith("Normalization")}
    assert norms == {*ONE_NODE.values()} - {"BatchNormalization"}  # which is one with the convolution
    images = torch.randn(5, 3, 4, 4, device=device)
    assert_same(in_runtime(program, [images]), model(images), units=256)


NO_TABLE = (
    r"expected normreg::layer_norm in the custom_translation_table .*: pass custom_translation_table=normreg"
)


@pytest.mark.parametrize("before", [False, True], ids=["a layer", "an exported program"])
def test_without_the_table_the_error_names_it(device, before):
    layer, x = layer_of("LayerNorm", device), torch.randn(BATCH, *LAYERS["LayerNorm"].sample, device=device)
    model = torch.export.export(layer, (x,)) if before else layer
    message = "expected normreg::layer_norm in the custom_translation_table .* pass .*=normreg.onnx_table()"
    with pytest.raises(RuntimeError, match=message):
        exported(model, (x,), OLDEST, custom_translation_table=None)


@pytest.mark.parametrize("kind", ["BatchNorm2d", "BatchNormAct2d", "InstanceNorm2d with state"])
def test_what_updates_running_statistics_is_no_onnx(device, kind):
    x = torch.randn(BATCH, *LAYERS[kind].sample, device=device)
    with pytest.raises(RuntimeError, match=r"with running_mean, running_var.*: call model.eval\(\) before"):
        exported(LAYERS[kind].make().to(device).train(), (x,), OLDEST)


def test_without_onnxscript_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"expected onnx .*: pip install onnx onnxscript$"):
        normreg.onnx_table()


def test_only_torch_onnx_finds_entries_in_torchs_table(device, monkeypatch):
    """In continuous integration Inductor refuses operators that the table has, as if it decomposed them."""
    monkeypatch.setenv("CI", "true")
    assert torch._decomp.get_decompositions([*normreg.decomposition_table()]) == {}
    layer, x = normreg.GroupNorm(2, 8, device=device), torch.randn(4, 8, device=device)
    assert torch.equal(torch.compile(layer)(x), layer(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_exporter_of_torchscript(device, tmp_path):
    """It records torch's operators, and needs no table."""
    layer, x = layer_of("LayerNorm", device), torch.randn(BATCH, *LAYERS["LayerNorm"].sample, device=device)
    torch.onnx.export(layer, (x,), tmp_path / "layer.onnx", dynamo=False, opset_version=17)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()
    (y,) = session.run(None, {argument.name: x.cpu().numpy()})
    assert_same([torch.from_numpy(y)], layer(x))

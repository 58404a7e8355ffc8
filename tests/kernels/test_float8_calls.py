"""`layer_norm` and `rms_norm` in float8_e4m3fn: which calls take a kernel, what is refused, layers."""

import copy
import pickle

import pytest
import torch
from float8_rows import FLOAT8, KERNELS, bits, exactly, in_float8, inputs, rounded
from float8_rows import inference as inference
from support.reference import WIDE

import normreg
from normreg import functional
from normreg.functional import dispatch, float8
from normreg.kernels.tiling import hardware, rows

every_norm = pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])


@pytest.mark.parametrize("cols", [24, WIDE, 20000])
@every_norm
def test_torch_path(device, launches, monkeypatch, name, cols):
    """Rows that are not held, and GPUs without float8: as the kernel's, but for a number next to a tie."""
    x, *parameters = inputs(name, (3, cols + 1), cols, torch.bfloat16, device)
    x = x[:, :-1]
    reason = lambda: float8.float8_reason(x, (cols,), *parameters, None, 1e-5)  # noqa: E731
    if cols == WIDE:
        assert reason() == "a row has more elements than a program holds"
    else:
        y8, scale = in_float8(name, x, *parameters)
        assert launches.pop() in KERNELS  # of a copy, where rows of 20000 do not begin at 16 bytes
        monkeypatch.setattr(float8, "supported", lambda device: False)
        assert reason().startswith("the GPU does not round to float8_e4m3fn: NVIDIA's do from")
    in_torch, its_scale = in_float8(name, x, *parameters)
    assert launches == []
    if cols == WIDE:
        y = exactly(name, x, *parameters)
        assert torch.equal(bits(in_torch), bits(rounded(y.float(), its_scale)))
        return
    torch.testing.assert_close(scale, its_scale, rtol=2**-20, atol=0)
    differs = bits(y8) != bits(in_torch)
    assert differs.float().mean() < 0.001
    assert ((y8.float() - in_torch.float()).abs() <= 32).all()


@pytest.mark.parametrize(
    ("dtype", "widest", "in_tiles"),
    [(torch.bfloat16, 16384, 32768), (torch.float32, 16384, 16384), (torch.float64, 8192, 8192)],
    ids=str,
)
def test_rows_that_are_held(dtype, widest, in_tiles):
    """Wherever they lie, and where they begin at 16 bytes; their tiles cover them."""
    for cols in (1, 1000, widest - 1, widest, widest + 1, in_tiles, in_tiles + 4, in_tiles + 8):
        held = cols <= widest or (cols <= in_tiles and cols % 8 == 0)
        assert rows.float8_is_held(cols, dtype) == held, cols
        if held:
            of_rows = rows.Rows(1, 4, cols, False)
            assert rows.layer_norm_float8_tile(of_rows, dtype).covers(of_rows)


def test_gpus_that_have_float8(monkeypatch):
    gpu = torch.device("cuda", 0)
    for capability, hip, expected in (
        ((8, 0), None, False),
        ((8, 9), None, True),
        ((9, 0), None, True),
        ((9, 4), "6.4", False),
    ):
        hardware.has_float8.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        monkeypatch.setattr(torch.version, "hip", hip)
        assert hardware.has_float8(gpu) == expected
    hardware.has_float8.cache_clear()


@every_norm
def test_what_is_refused(device, launches, name):
    x = torch.randn(3, 8, device=device)
    with (
        torch.enable_grad(),
        pytest.raises(RuntimeError, match=r"^expected a call without a gradient, .*no_gr"),
    ):
        in_float8(name, x, torch.ones(8, device=device, requires_grad=True))
    with pytest.raises(
        ValueError, match=r"^expected scale to be a tensor of float32, got torch.float64: pass"
    ):
        in_float8(name, x, scale=torch.ones(1, device=device, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^expected scale to be a tensor of float32, got 0.5: pass"):
        in_float8(name, x, scale=0.5)
    with pytest.raises(
        ValueError, match=r"^expected scale to have one element, or shape \(3, 1\), .*\(3,\): pa"
    ):
        in_float8(name, x, scale=torch.ones(3, device=device))
    call = getattr(functional, name)
    with pytest.raises(
        ValueError, match=r"^expected no scale with out_dtype=None, got one: pass out_dtype=tor"
    ):
        call(x, (8,), scale=torch.ones(1, device=device))
    for options in (dict(residual=x), dict(prenorm=True)):
        with pytest.raises(ValueError, match=r"^expected out_dtype to be one of .* without a residual: add"):
            call(x, (8,), out_dtype=FLOAT8, **options)
        with pytest.raises(ValueError, match=r"^expected no scale with out_dtype=None"):
            call(x, (8,), scale=torch.ones(1, device=device), **options)
    for refuse in (
        lambda: normreg.GroupNorm(2, 8, out_dtype=FLOAT8),
        lambda: normreg.LayerNorm2d(8, out_dtype=FLOAT8),
        lambda: functional.group_norm(x, 2, out_dtype=FLOAT8),
    ):
        with pytest.raises(
            ValueError, match=r"^expected out_dtype to be one of .*got torch.float8_e4m3fn, which"
        ):
            refuse()
    assert launches == []


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
def test_layers(device, launches, kind):
    layer = getattr(normreg, kind)(16, device=device, out_dtype=FLOAT8)
    x = torch.randn(3, 16, device=device)
    for one in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        y8, scale = one(x)
        assert (y8.dtype, scale.shape) == (FLOAT8, (3, 1))
        assert ", out_dtype=torch.float8_e4m3fn" in repr(one)
    assert len(launches) == 3
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(bits(layer(x)[0]), bits(y8))
    with torch.inference_mode():
        assert torch.equal(bits(layer(x)[0]), bits(y8))
    listened = []
    with dispatch.watched(lambda *told: listened.append(told[::2])):
        layer(x)
    assert listened == [({"LayerNorm": "layer_norm", "RMSNorm": "rms_norm"}[kind], None)]


@every_norm
def test_compiled_in_one_graph(device, launches, name):
    x, weight, bias = inputs(name, (3, 16), 16, torch.bfloat16, device)

    def call(x, scale):
        y8, scale = in_float8(name, x, weight, bias, scale)
        return y8, scale * 2

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for number, given in ((3, None), (5, None), (3, torch.tensor([0.1], device=device))):
        rows_of_x = x.repeat(2, 1)[:number]
        y8, scale = compiled(rows_of_x, given)
        expected, its_scale = call(rows_of_x, given)
        assert torch.equal(bits(y8), bits(expected))
        assert torch.equal(scale, its_scale)
    assert set(launches) <= KERNELS
    assert len(launches) == 6

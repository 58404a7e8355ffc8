"""Norms in float8, compiled: registers, spills, accesses, bytes and instructions."""

import pytest
import torch
import triton

from bench import lab
from bench.lab.without_gpu import as_on_a_gpu, noted_launches
from bench.operations.case import DTYPES
from bench.perf import static
from bench.perf.instructions import described
from bench.perf.instructions.tables import lanes_per_element, passes, sectors_over_bytes
from normreg import functional

PINNED = triton.__version__.startswith("3.7.")
INSTRUCTIONS = {"rms_norm": 16, "layer_norm": 23}  # an element, at most
every_norm = pytest.mark.parametrize("name", INSTRUCTIONS)
# several rows a tile, tiles that are not whole, most tiles; what 16 bits have, 32 do not hold
COLS = {"bf16": (64, 768, 1000, 1025, 4096, 16384, 32768), "fp32": (64, 4096, 16384), "fp16": (4096,)}
COLS["fp64"] = (64, 8192)


@pytest.fixture(autouse=True)
def guarded_memory():
    """Guards nothing: most of what is here is not launched."""


@pytest.fixture(scope="module")
def host():
    """The lab's GPU of this session; module scope sets it up before memory is guarded."""
    return triton.runtime.driver.active


def called(name, rows, cols, dtype, **options):
    x, weight, bias = (torch.randn(s).to(dtype) for s in ((rows, cols), cols, cols))
    parameters = (weight, bias) if name == "layer_norm" else (weight,)
    with torch.no_grad(), as_on_a_gpu():
        getattr(functional, name)(x, (cols,), *parameters, out_dtype=torch.float8_e4m3fn, **options)


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32", pytest.param("fp16", marks=pytest.mark.slow)])
@every_norm
def test_compiles_without_spills_and_with_16_byte_accesses(target, dtype, name):
    for cols in COLS[dtype]:
        with noted_launches() as noted:
            called(name, 4, cols, DTYPES[dtype])
        (one,) = noted
        with lab.machine_code():
            compiled = static.compile_launch(one, static.TARGETS[target])
        code = static.nvidia_machine_code(compiled)
        assert code.spill_bytes <= (0 if PINNED else 8), cols
        assert code.approximate_roots == 0
        if cols % 8 == 0:
            assert max(code.access_bytes) == 16, cols
            assert code.registers <= 128, cols
            assert compiled.metadata.shared <= 1024, cols


@pytest.mark.slow
@every_norm
def test_float64_compiles(name):
    for cols in COLS["fp64"]:
        with noted_launches() as noted:
            called(name, 4, cols, torch.float64)
        with lab.machine_code():
            compiled = static.compile_launch(noted[0], static.TARGETS["sm_90"])
        assert static.nvidia_machine_code(compiled).spill_bytes == 0


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("rows", "cols"), [(8448, 64), (264, 4096), (66, 16384)])
@every_norm
def test_a_row_is_read_once_and_a_byte_an_element_stored(host, name, rows, cols, given):
    if host.arch < 89:
        pytest.skip("there is no float8 before sm_89")
    with lab.counted(host) as launches:
        called(name, rows, cols, torch.bfloat16, scale=torch.ones(1) if given else None)
    (one,) = launches
    parameters = 2 * cols * (2 if name == "layer_norm" else 1)
    assert one.dram_bytes == 3 * rows * cols + parameters + (4 if given else 4 * rows)
    record = described(one, host) | dict(elements=rows * cols)
    assert lanes_per_element(record) <= INSTRUCTIONS[name] * (1.0 if PINNED and host.arch == 90 else 1.5)
    assert sectors_over_bytes(record) <= 1.02
    assert passes(record) <= 1.0

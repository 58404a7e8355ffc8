"""The driver that executes compiled kernels in host memory: arguments, refusals and counts."""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import driver

import normreg
from bench import lab
from normreg.kernels import cpu


@triton.jit
def numbers_kernel(
    out_ptr, small, large, huge, real: tl.float64, flag, nothing_ptr, pair, FACTOR: tl.constexpr
):
    tl.store(out_ptr, small.to(tl.float64))
    tl.store(out_ptr + 1, large.to(tl.float64))
    tl.store(out_ptr + 2, (huge == 2**63 + 2**40).to(tl.float64))
    tl.store(out_ptr + 3, real)
    tl.store(out_ptr + 4, tl.where(flag, 1.0, 0.0).to(tl.float64))
    tl.store(out_ptr + 5, 7.0 if nothing_ptr is None else 8.0)
    tl.store(out_ptr + 6, tl.load(pair[0]).to(tl.float64) + pair[1] * FACTOR)


@triton.jit(do_not_specialize=["size"])
def copy_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if MASKED:
        tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < size, other=0.0), mask=at < size)
    else:
        tl.store(y_ptr + at, tl.load(x_ptr + at))


@pytest.fixture(autouse=True)
def fusion_stated(monkeypatch):
    """Triton 3.9 warns at launches that do not say, because its default will change."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")


@pytest.fixture
def host():
    return driver.active


def test_arguments_of_every_type():
    out, one = torch.zeros(7, dtype=torch.float64), torch.tensor([2.5])
    numbers_kernel[(1,)](out, -3, -(2**40), 2**63 + 2**40, 0.1, True, None, (one, 6), FACTOR=2)
    assert out.tolist() == [-3, -(2**40), 1, 0.1, 1, 7, 14.5]


@pytest.mark.parametrize("grid", [(0, 1, 1), (1, 65536, 1), (1, 1, 65536), (2**31, 1, 1)])
def test_a_grid_that_cuda_would_refuse(grid):
    x = torch.zeros(8)
    with pytest.raises(
        ValueError, match=r"^copy_kernel: expected a grid from 1 to \(2147483647, 65535, 65535\)"
    ):
        copy_kernel[grid](x, x.clone(), 8, BLOCK=8, MASKED=True)


def test_a_missing_mask_is_a_fault(host):
    x, y = torch.randn(1000), torch.full((1000,), float("nan"))
    copy_kernel[(8,)](x, y, 1000, BLOCK=128, MASKED=True)
    assert torch.equal(x, y)
    with pytest.raises(lab.GpuFault, match=r"copy_kernel.*outside"):
        copy_kernel[(8,)](x, y, 1000, BLOCK=128, MASKED=False)


def test_a_tensor_that_is_not_of_the_cpu():
    x = torch.zeros(8)
    with pytest.raises(
        ValueError, match="expected tensors of the CPU, got one of meta: this driver executes"
    ):
        copy_kernel[(1,)](x, torch.zeros(8, device="meta"), 8, BLOCK=8, MASKED=True)


def test_launches_are_counted(host):
    x, y = torch.randn(1024), torch.zeros(1024)
    with lab.counted(host) as outer:
        copy_kernel[(8,)](x, y, 1024, BLOCK=128, MASKED=False)
        with lab.counted(host) as inner:
            copy_kernel[(8,)](x, y, 1024, BLOCK=128, MASKED=False)
    copy_kernel[(8,)](x, y, 1024, BLOCK=128, MASKED=False)
    (one,) = outer
    assert inner == [one]
    assert (one.kernel, one.grid, one.threads) == ("copy_kernel", (8, 1, 1), 128)
    for way in ("load", "store"):
        assert one.count[f"global {way} bytes"] == 4096
        assert one.count[f"global {way} sectors"] == 128
    assert one.dram_bytes == 2 * 4096
    assert one.by_class["lsu"] == 2 * 8 * 4  # a load and a store of each warp


def test_machine_code_beside_it():
    source = triton.compiler.ASTSource(
        copy_kernel, dict(x_ptr="*fp32", y_ptr="*fp32", size="i32"), dict(BLOCK=128, MASKED=True)
    )
    target = driver.active.get_current_target()
    with lab.machine_code():
        assert triton.compile(source, target=target).asm["cubin"][:4] == b"\x7fELF"
    assert "cubin" not in triton.compile(source, target=target).asm


def test_approximations_are_moved_within_bounds(host, monkeypatch):
    """x * sigmoid(x) takes ex2.approx and div.full, whose results a GPU may round either way."""
    x, layer = torch.randn(4, 1000), normreg.BatchNormAct1d(1000, act="silu").eval()
    exact = torch.nn.functional.silu(x.double() / (1 + layer.eps) ** 0.5)
    results = []
    for seed in (None, 1, 1, 2):
        monkeypatch.setattr(host, "approximate", seed)
        results.append(layer(x).detach())
        assert (results[-1] - exact).abs().max().item() < 4e-6
    assert torch.equal(results[1], results[2])
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[1], results[3])


def test_installed_too_late(monkeypatch):
    monkeypatch.setattr(lab, "activate", lambda host: None)
    monkeypatch.setattr(cpu, "KERNELS", None)
    message = (
        r"expected lab\.install\(\) before normreg is imported, got it imported already, with kernels of the"
    )
    with pytest.raises(RuntimeError, match=message):
        lab.install()

"""Where an executed kernel's time on a GPU would go: a model of memory, issue and pipes, not a measurement.

Every term is what it would take alone, with all multiprocessors busy from beginning to end: latency, the
launch, and one term that waits for another are left out. Instructions are those of PTX, of which a GPU's
assembler drops moves and splits divisions: dropout's 19.9 an element are 17.2 in sm_90's machine code, those
of bias, GELU and dropout 64.4 and 56.2, with SiLU 31.3 and 37.6 (`bench static`): terms may be a fifth off.
"""

from dataclasses import dataclass

WARP = 32  # lanes


@dataclass(frozen=True)
class Gpu:
    name: str
    multiprocessors: int
    schedulers: int  # of a multiprocessor; each issues an instruction of a warp a clock
    clock_hz: float
    copy_bytes_per_s: float  # read and written, of a large copy
    lanes: dict[str, int]  # that a multiprocessor executes a clock, of each class of instructions

    def issued_lanes_per_s(self):
        return self.multiprocessors * self.schedulers * WARP * self.clock_hz

    def room(self):
        """Lane instructions a byte moved, with which issue takes as long as memory."""
        return self.issued_lanes_per_s() / self.copy_bytes_per_s

    def memory_us(self, moved):
        return moved / self.copy_bytes_per_s * 1e6

    def issue_us(self, by_class):
        return WARP * sum(by_class.values()) / self.issued_lanes_per_s() * 1e6

    def pipes_us(self, by_class):
        """{class: microseconds}"""
        clocks = {name: WARP * count / self.lanes[name] for name, count in by_class.items()}
        return {name: n / (self.multiprocessors * self.clock_hz) * 1e6 for name, n in clocks.items()}


# Multiprocessors and memory: NVIDIA H100 Tensor Core GPU Architecture, H100 SXM5 (132, 3.35 TB/s); copies of
# large tensors reach about 90 % of the latter, and clocks under load are below the boost of 1.98 GHz.
# Lanes: CUDA C++ Programming Guide, Throughput of Native Arithmetic Instructions, compute capability 9.0. The
# pipe of a division is that of its reciprocal; load and store units take 32 lanes a clock, and so barriers.
H100 = Gpu(
    name="H100 SXM",
    multiprocessors=132,
    schedulers=4,
    clock_hz=1.7e9,
    copy_bytes_per_s=3.0e12,
    lanes=dict(
        alu=64, fma=128, cvt=64, fp64=64, mufu=16, div=16, lsu=32, shfl=32, branch=64, bar=32
    ),
)  # fmt: skip


def terms(gpu, moved, by_class):
    """What each would take alone, and the largest: memory, issue, or the class of the busiest pipe."""
    pipes = gpu.pipes_us(by_class)
    pipe = max(pipes, key=pipes.get)
    memory_us, issue_us = gpu.memory_us(moved), gpu.issue_us(by_class)
    times = {"memory": memory_us, "issue": issue_us, pipe: pipes[pipe]}  # the first of equals counts
    return dict(
        gpu=gpu.name,
        what="a model, not a measurement",
        memory_us=round(memory_us, 6),
        issue_us=round(issue_us, 6),
        pipe=pipe,
        pipe_us=round(pipes[pipe], 6),
        larger=max(times, key=times.get),
    )

"""A model of an executed kernel's time on a GPU, by memory, issue and pipes. It is not a measurement.

Every term is the time that its part alone would take, with all multiprocessors busy from beginning to end;
latency, the launch, and waits of one part for another are left out. Instructions are those of PTX; a GPU's
assembler drops moves and splits divisions. Dropout has 19.5 of them an element in PTX and 16.9 in sm_90's
machine code; bias, GELU and dropout 35.9 and 33.0, with SiLU 26.9 and 31.9 (`bench static`). So terms may be
off by a fifth.
"""

from dataclasses import dataclass

from bench.lab.ptx.lanes import WARP


@dataclass(frozen=True)
class Gpu:
    name: str
    multiprocessors: int
    schedulers: int  # per multiprocessor; each issues an instruction of a warp a clock
    clock_hz: float
    copy_bytes_per_s: float  # bytes read and written by a large copy
    lanes: dict[str, int]  # that a multiprocessor executes a clock, by class of instructions

    def issued_lanes_per_s(self):
        return self.multiprocessors * self.schedulers * WARP * self.clock_hz

    def room(self):
        """The lane instructions a byte moved at which issue takes as long as memory."""
        return self.issued_lanes_per_s() / self.copy_bytes_per_s

    def memory_us(self, moved):
        return moved / self.copy_bytes_per_s * 1e6

    def issue_us(self, by_class):
        return WARP * sum(by_class.values()) / self.issued_lanes_per_s() * 1e6

    def pipes_us(self, by_class):
        """Microseconds of each pipe: {class: microseconds}."""
        clocks = {name: WARP * count / self.lanes[name] for name, count in by_class.items()}
        return {name: n / (self.multiprocessors * self.clock_hz) * 1e6 for name, n in clocks.items()}


# Multiprocessors and memory: NVIDIA H100 Tensor Core GPU Architecture, H100 SXM5 (132, 3.35 TB/s); copies of
# large tensors reach about 90 % of the latter, and clocks under load are below the boost of 1.98 GHz.
# Lanes: CUDA C++ Programming Guide, Throughput of Native Arithmetic Instructions, compute capability 9.0.
# A division occupies the pipe of its reciprocal; load and store units, and barriers, take 32 lanes a clock.
H100 = Gpu(
    name="H100 SXM",
    multiprocessors=132,
    schedulers=4,
    clock_hz=1.7e9,
    copy_bytes_per_s=3.0e12,
    lanes=dict(alu=64, fma=128, cvt=64, fp64=64, mufu=16, div=16, lsu=32, shfl=32, branch=64, bar=32),
)


def terms(gpu, moved, by_class):
    """The times of memory, issue and the busiest pipe, and the name of the largest."""
    pipes = gpu.pipes_us(by_class)
    pipe = max(pipes, key=pipes.get)
    memory_us, issue_us = gpu.memory_us(moved), gpu.issue_us(by_class)
    times = {"memory": memory_us, "issue": issue_us, pipe: pipes[pipe]}  # of equal times the first is named
    return dict(
        gpu=gpu.name,
        what="a model, not a measurement",
        memory_us=round(memory_us, 6),
        issue_us=round(issue_us, 6),
        pipe=pipe,
        pipe_us=round(pipes[pipe], 6),
        larger=max(times, key=times.get),
    )

"""Shows what a first training step under Inductor costs: `python -m bench first_step kernels|operators`.

The step is one of four encoder layers on the CPU, with kernels compiled to PTX and executed in host memory,
without caches: seconds until it is done, and bytes of the two programs that Inductor wrote.
"""

import os
import tempfile
import time

import torch

from bench import lab


def first_step(kind):
    """Seconds of the step, and the sizes of its programs, as `normreg.recorded_as(kind)` has them."""
    lab.install()
    import normreg

    layer = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    normreg.replace(model)
    x = torch.randn(4, 16, 64)
    torch.compile(lambda x: x.sin())(x)  # what is imported once
    torch._dynamo.reset()
    with normreg.recorded_as(kind), torch._inductor.config.patch(fx_graph_cache=False):
        start = time.perf_counter()
        compiled = torch.compile(model)
        _, programs = torch._inductor.utils.run_and_get_code(lambda: compiled(x).sum().backward())
        return time.perf_counter() - start, [len(program) for program in programs]


def add_arguments(parser):
    parser.add_argument("kind", choices=("kernels", "operators"), help="what `normreg.recorded_as` is given")


def run(arguments):
    with tempfile.TemporaryDirectory() as empty:
        caches = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
        os.environ |= {name: os.path.join(empty, name) for name in caches}
        os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"
        seconds, sizes = first_step(arguments.kind)
    print(f"{arguments.kind}: {seconds:.1f} s, programs of {' and '.join(map(str, sizes))} bytes")
    return 0

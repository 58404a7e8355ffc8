"""What tests of torch.compile share."""

import shutil

import pytest
import torch
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config

OF_INDUCTOR = [
    pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler"),
    # of torch's own modules, on their first import; what inductor advises where there are tensor cores
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]


@pytest.fixture(autouse=True)
def guarded_memory():
    """Guards nothing: what the compiler itself allocates must not be moved between guard bands."""


@pytest.fixture(autouse=True)
def compiled_afresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def inductor_afresh():
    """Takes no graph from the disk, of operators as they once were; no processes outlive the test."""
    no_graphs = functorch_config.patch(enable_autograd_cache=False)
    with no_graphs, inductor_config.patch(fx_graph_cache=False, compile_threads=1):
        yield


def compiled(f, backend="aot_eager", **options):
    return torch.compile(f, backend=backend, **dict(fullgraph=True) | options)

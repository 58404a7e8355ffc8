"""Prints, as JSON, why no kernel runs where Triton cannot be imported, after running all that works there.

With the argument `hidden`, Triton is not to be found; else its import is what the surroundings make of it.
"""

import importlib.util
import json
import sys
import types


class WithoutTriton:
    """A finder of modules that does not find Triton's."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *given):
        return None if name.partition(".")[0] == "triton" else self.finder.find_spec(name, *given)


if sys.argv[1:] == ["hidden"]:
    sys.meta_path[:] = map(WithoutTriton, sys.meta_path)


def triton_of_now():
    """What somebody else finds of Triton."""
    error = None
    try:
        import triton  # noqa: F401
    except ImportError as raised:
        error = str(raised)
    loaded = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "triton"}
    return error, loaded, importlib.util.find_spec("triton") is None


before = triton_of_now()
import torch  # noqa: E402
from operations import FUNCTIONS, KINDS, LIBRARIES, OURS, TORCH, torch_layer  # noqa: E402
from torch.utils._triton import has_triton_package  # noqa: E402

import normreg  # noqa: E402
from normreg.functional import dispatch  # noqa: E402
from normreg.kernels import launch  # noqa: E402

assert before[0] is not None
assert triton_of_now() == before
assert "normreg.kernels.layer_norm.tile" in sys.modules
assert not has_triton_package()
launch.launch = None


def results(library, example):
    torch.manual_seed(1)
    inputs = example.inputs(torch.device("cpu"), torch.float32)
    y = example(LIBRARIES[library], *inputs)
    wanted = [x for x in inputs if x.requires_grad and y.requires_grad]
    return [y, *torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)]


for example in FUNCTIONS.values():
    if hasattr(TORCH, example.name) and hasattr(OURS, example.name) and "drop" not in example.name:
        for ours, theirs in zip(results("normreg", example), results("torch", example), strict=True):
            torch.testing.assert_close(ours, theirs)

reasons = set()
for kind in KINDS:
    layer, x = torch_layer(kind, torch.device("cpu"))
    assert len(normreg.replace(layer).changed) == 1
    reasons |= {call.why for call in normreg.explain(layer, x)}

layers = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Dropout()
model, x = torch.nn.Sequential(*layers), torch.randn(6, 4)
normreg.replace(model)
for backend in ("eager", "aot_eager", normreg.fused(), normreg.fused("aot_eager")):
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    compiled.train()(x).sum().backward()
    torch.testing.assert_close(compiled.eval()(x), model(x))
report = normreg.replace(model.train(), fuse=True, example_inputs=x)
reasons |= {skip.reason for skip in report.not_fused}
assert len(normreg.diagnose(model, x).layers) == 4

# tensors of devices that this machine does not have
on_gpu = types.SimpleNamespace(is_cuda=True, is_cpu=False, is_neg=lambda: False)
dispatch.PLAIN, dispatch.is_wrapped = (types.SimpleNamespace,), lambda x: False
for device in ("cuda", "xpu", "mps", "meta"):
    on_gpu.is_cuda, on_gpu.device = device == "cuda", types.SimpleNamespace(type=device)
    reasons.add(dispatch.tensor_reason(on_gpu, ()))
print(json.dumps(sorted(reasons)))

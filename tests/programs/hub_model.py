"""Trains a model of transformers with normreg's layers, as a user does who has all three packages installed.

Argument: a folder that `normreg.hub.write` has written.
"""

import copy
import importlib.metadata
import sys
from unittest import mock

import torch
from support import hub
from support.hugging_face import assert_agrees, built, in_float64, train

import normreg

version = importlib.metadata.version


def version_of(package):
    """The version; of `kernels` one that transformers takes, where the installed one may be older."""
    if package != "kernels":
        return version(package)
    return sys.modules["transformers.utils.import_utils"].KERNELS_MIN_VERSION


def homes(model):
    """The packages whose forwards the RMSNorm layers have."""
    norms = [m for m in model.modules() if getattr(m, "kernel_layer_name", None) == "RMSNorm"]
    return [norm.forward.__func__.__module__.partition(".")[0] for norm in norms]


def main(folder):
    with mock.patch("importlib.metadata.version", version_of):
        import transformers
        from transformers.utils import kernel_config

        model, inputs = built(transformers, "LlamaForCausalLM", torch.device("cpu"))
    kernels = sys.modules["kernels"]
    twin, exact = copy.deepcopy(model), in_float64(model, inputs, 2)
    expected = train(copy.deepcopy(model), inputs, 2)

    with kernels.use_kernel_mapping(normreg.hub.mapping()):
        kernels.kernelize(model, mode=kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE)
    assert homes(model) == ["normreg"] * 3
    whole = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    with hub.paths_taken() as reasons:
        assert_agrees(train(model, inputs, 2), expected, exact)
    assert reasons == [None] * 6
    assert_agrees(train(whole, inputs, 2), expected, exact)

    kernel_config.KERNELS_SUPPORTED_DEVICE_TYPES.append("cpu")  # which it knows no kernels for
    config = transformers.KernelConfig({"RMSNorm": f"{folder}:RMSNorm"}, use_local_kernel=True)
    twin.set_use_kernels(True, config)
    assert len({*homes(twin)}) == 1
    assert homes(twin)[0].startswith("_normreg_")
    assert_agrees(train(twin, inputs, 2), expected, exact)


with hub.hugging_faces_kernels():
    main(*sys.argv[1:])

"""A program: steps in eager mode, then one that draws as under capture, with a driver that launches nothing.

Prints, as JSON, the kernels that take a seed, those of them that were launched, and the variants that the
last steps compiled: under a CUDA graph's capture each would be a module to load, which CUDA refuses.
"""

import importlib
import json
import pkgutil
from unittest import mock

import torch

from bench.lab import stub_driver
from bench.lab.without_gpu import as_on_a_gpu
from normreg import functional, kernels
from normreg.ops import seed


def kernels_with_a_seed():
    modules = [
        importlib.import_module(m.name) for m in pkgutil.walk_packages(kernels.__path__, "normreg.kernels.")
    ]
    found = {
        name: kernel
        for module in modules
        for name, kernel in vars(module).items()
        if name.endswith("_kernel")
    }
    return sorted(name for name, kernel in found.items() if "seed_ptr" in kernel.arg_names)


def tensor(*shape, channels_last=False):
    made = torch.zeros(shape, dtype=torch.bfloat16)
    made = made.to(memory_format=torch.channels_last) if channels_last else made
    return made.requires_grad_()


def calls():
    """Calls of each function with a mask that reach every kernel and variant that it has."""
    flat, image, last = tensor(16, 768), tensor(4, 24, 14, 14), tensor(4, 24, 14, 14, channels_last=True)
    yield from ((f, x) for f in (functional.dropout, functional.alpha_dropout) for x in (flat, image))
    yield from ((functional.dropout2d, x) for x in (image, last))
    yield functional.feature_alpha_dropout, image
    yield functional.dropout1d, tensor(4, 24, 14)
    yield functional.dropout3d, tensor(2, 8, 4, 4, 4)
    yield functional.drop_path, flat
    yield functional.dropout_add, flat, flat
    yield lambda x, w: functional.dropout_add(x, x, layer_scale=w), flat, tensor(768)
    yield functional.drop_path_add, flat, flat
    yield lambda x, w: functional.drop_path_add(x, x, layer_scale=w), flat, tensor(768)
    yield functional.bias_act_dropout, flat
    yield functional.bias_act_dropout, flat, tensor(768)
    for cols in (64, 12288, 70000):  # in a tile, in parts, too wide to be held
        x, w = tensor(4, cols), tensor(cols)
        for function in (functional.dropout_add_layer_norm, functional.dropout_add_rms_norm):
            for options in ({}, dict(prenorm=True, layer_scale=w)):
                yield lambda x, w, f=function, o=options, n=cols: f(x, x, (n,), w, **o), x, w


def step(call, *inputs):
    y = call(*inputs)
    results = y if isinstance(y, tuple) else (y,)
    torch.autograd.grad(results, inputs, [torch.zeros_like(y) for y in results], allow_unused=True)


def main():
    record = stub_driver.install()
    with as_on_a_gpu():
        chosen = list(calls())
        for call in 2 * chosen:
            step(*call)
        before = len(record.compiled)
        drawn = torch.arange(3)  # one at a multiple of 16 bytes, one beside
        for position in (0, 1):
            with mock.patch.object(seed, "draw", return_value=drawn[position]):
                for call in chosen:
                    step(*call)
    wanted, launched = kernels_with_a_seed(), {name for name, _ in record.launched}
    print(
        json.dumps(dict(wanted=wanted, launched=sorted(launched & {*wanted}), new=record.compiled[before:]))
    )


if __name__ == "__main__":
    main()

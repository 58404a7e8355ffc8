"""Compares what kept launches launch with what Triton's own way does; prints of how many layers."""

import torch

import normreg
from bench.lab import stub_driver
from bench.lab.without_gpu import as_on_a_gpu
from bench.operations import OPERATIONS, cases


def told(argument):
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.shape, argument.data_ptr() % 16
    if isinstance(argument, tuple):  # of tensors, a NamedTuple from Triton's own way
        return tuple(map(told, argument))
    return type(argument), argument


seen = []
METADATA_AND_HOOKS = slice(6, 9)  # of a launcher's arguments; what is kept makes none where no hook listens


def launcher(self, source, metadata):
    name = source.fn.__name__

    def launch(*arguments, **options):
        assert not options
        (*given,) = map(told, arguments)
        given[METADATA_AND_HOOKS] = []
        seen.append((name, *given))

    return launch


stub_driver.StubDriver.launcher = launcher
record = stub_driver.install()


def step(layer, x, dy):
    seen.clear()
    y = layer(x)
    torch.autograd.grad(y, (x, *layer.parameters()), dy)
    return list(seen)


def told_by_triton(*arguments):  # what Triton's own way says each time
    normreg.kernels.launch.forget()
    return step(*arguments)


with as_on_a_gpu():
    found = [case for name in OPERATIONS for case in cases("host", [name])]
    for case in found:
        layer = OPERATIONS[case.operation].layer(normreg, case, dtype=case.dtype)
        x = case.like_input(torch.randn, "cpu").requires_grad_()
        dy = torch.randn_like(x)
        first = told_by_triton(layer, x, dy)
        compiled = len(record.compiled)
        assert len(first) >= 2, case
        assert step(layer, x, dy) == first == step(layer, x, dy), case

        elsewhere = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x.detach())
        elsewhere.requires_grad_()
        assert elsewhere.data_ptr() % 16
        moved = step(layer, elsewhere, dy)
        assert len(record.compiled) > compiled, case  # other code, without 16-byte accesses
        assert moved == told_by_triton(layer, elsewhere, dy) != first, case
        assert step(layer, x, dy) == first, case
print(len(found))

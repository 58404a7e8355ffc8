"""The collectives that operations call, by the name of the process group: those that torch.compile traces."""

import torch


def all_gather(tensor, group, ranks):
    """The tensors of all ranks, one after the other, in one."""
    c10d = torch.ops._c10d_functional
    return c10d.wait_tensor(c10d.all_gather_into_tensor(tensor, ranks, group))


def all_reduce(tensor, group):
    """The sum of the tensors of all ranks, which replaces them."""
    c10d = torch.ops._c10d_functional
    return c10d.wait_tensor(c10d.all_reduce_(tensor, "sum", group))


def all_reduced(tensor, group):
    """The sum of the tensors of all ranks, as a tensor of its own."""
    c10d = torch.ops._c10d_functional
    return c10d.wait_tensor(c10d.all_reduce(tensor, "sum", group))


class AllReduceFunction(torch.autograd.Function):
    """The sum over the ranks, which is its own gradient, of any order."""

    @staticmethod
    def forward(ctx, tensor, group):
        ctx.group = group
        return all_reduced(tensor, group)

    @staticmethod
    def backward(ctx, dy):
        return AllReduceFunction.apply(dy.contiguous(), ctx.group), None

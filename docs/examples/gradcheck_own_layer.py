"""Checks the gradients of layers of your own, by torch's gradcheck in float64.

The first layer calls `normreg.functional` and gets its gradients from it. The
second has an autograd.Function with a backward by hand, as one writes to keep
less for it. First and second derivatives of both are compared with finite
differences, and `explain` says whether kernels computed them.

    python gradcheck_own_layer.py                # on a GPU
    TRITON_INTERPRET=1 python gradcheck_own_layer.py  # the kernels, on a CPU
"""

import torch
from torch import nn
from torch.nn import functional as F

import normreg


class GatedBlock(nn.Module):
    """residual + sigmoid(gate) * gelu(norm(x)), in two of normreg's calls."""

    def __init__(self, width, p=0.5):
        super().__init__()
        self.norm = normreg.RMSNorm(width)
        self.gate = nn.Parameter(torch.zeros(width))
        self.p = p

    def forward(self, x, residual):
        y = self.gate.sigmoid() * F.gelu(self.norm(x))
        return normreg.functional.dropout_add(y, residual, self.p, self.training)


class Centred(torch.autograd.Function):
    """x minus its mean over the last dimension: the backward needs neither of them."""

    @staticmethod
    def forward(x):
        return x - x.mean(-1, keepdim=True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, dy):
        return Centred.apply(dy)  # the same map; apply gives it a derivative, too


class CentredNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = normreg.RMSNorm(width)

    def forward(self, x):
        return self.norm(Centred.apply(x))  # LayerNorm without a bias


def check(layer, *shapes):
    """Compares first and second derivatives with finite differences."""
    like = dict(device=device, dtype=torch.float64)
    layer = layer.to(**like)
    inputs = [torch.randn(shape, **like, requires_grad=True) for shape in shapes]
    names, parameters = zip(*layer.named_parameters())

    def function(*tensors):
        torch.manual_seed(0)  # the same mask of dropout at every call
        values = dict(zip(names, tensors[len(inputs) :]))
        return torch.func.functional_call(layer, values, tensors[: len(inputs)])

    torch.autograd.gradcheck(function, (*inputs, *parameters))
    torch.autograd.gradgradcheck(function, (*inputs, *parameters))
    print(f"{type(layer).__name__}: first and second derivatives are right")
    print(normreg.explain(layer, *inputs), end="\n\n")


device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
check(GatedBlock(3), (2, 3), (2, 3))
check(CentredNorm(3), (2, 3))

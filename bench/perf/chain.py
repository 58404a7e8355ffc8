"""Least bytes and launches of torch's operators that compute what a fused call of ours does; needs no GPU.

A case is a torch user's own code, run forward and backward on tensors without memory. Every operator that is
not a view counts one launch, reads each tensor that it is given once and writes each result once: the least
that eager mode can move. It moves more where an operator reads a tensor twice or is several kernels, as the
backward of a norm with parameters is. Operators are those of CUDA: dropout has a mask of a byte an element,
and RMSNorm is one operator. `torch.compile` fuses operators, too, and is not counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from bench.harness import tables
from bench.operations import OPERATIONS, qk_norm
from bench.operations.bias_act_dropout import P
from bench.operations.case import cases_of
from bench.operations.composed import Both
from bench.perf.torch_operators import Operators, bytes_of

DIRECTIONS = ("forward", "backward")


class RMSNorm(torch.autograd.Function):
    """RMSNorm as CUDA's operator, which elsewhere is a chain of others."""

    @staticmethod
    def forward(ctx, x, weight, noted):
        y, rstd = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
        noted.append(("aten::_fused_rms_norm", bytes_of((x, weight, y, rstd))))
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, rstd = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        return *torch.ops.aten._fused_rms_norm_backward(dy, x, x.shape[-1:], rstd, weight, wanted), None


class AsOnCuda(TorchFunctionMode):
    """Calls for tensors without memory the operators that CUDA's tensors take."""

    def __init__(self, noted):
        super().__init__()
        self.noted = noted

    def __torch_function__(self, function, types, args=(), kwargs=None):
        own = {F.dropout: self.dropout, F.rms_norm: self.rms_norm}
        return own.get(function, function)(*args, **(kwargs or {}))

    def dropout(self, x, p, training, inplace):
        return torch.native_dropout(x, p, training)[0]

    def rms_norm(self, x, shape, weight, eps):
        return RMSNorm.apply(x, weight, self.noted)


class Rotary(qk_norm.Heads):
    """Norms of queries and keys, then the rotary embedding of whole heads, as in transformers."""

    def forward(self, x):
        def turned(t):
            a, b = t.chunk(2, -1)
            return t * self.cos + torch.cat((-b, a), -1) * self.sin

        return Both.apply(turned(self.q_norm(x)), turned(self.k_norm(self.keys["x"])))


def rotary(case, **options):
    layer = OPERATIONS["qk_norm"].torch_layer(case, **options)
    layer.__class__ = Rotary
    return layer


class Gated(torch.nn.Module):
    """RMSNorm and gate in the input's dtype; published layers compute in float32, which moves more."""

    def __init__(self, case, **options):
        super().__init__()
        self.gate = torch.nn.Parameter(case.like_input(torch.empty, options["device"], options["dtype"]))
        self.norm = torch.nn.RMSNorm(case.shape[-1], 1e-5, **options)

    def forward(self, x):
        return self.norm(x) * F.silu(self.gate)


class BehindLinear(torch.nn.Module):
    """GELU and dropout behind a linear layer, which adds its bias itself; the bias has its gradient here."""

    def __init__(self, case, **options):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.empty(case.shape[-1], **options))

    def forward(self, x):
        with _disable_current_modes():
            z = x + self.bias
        return F.dropout(F.gelu(z), P, self.training)


@dataclass(frozen=True)
class Chain:
    """What a fused call computes, in the ledger's case of it."""

    label: str
    operation: str
    text: str
    layer: Callable | None = None  # what users write, where it is not the operation's `torch_layer`
    inputs: int = 1  # of x's size that are normalised

    @property
    def case(self):
        (case,) = cases_of(self.operation, self.text)
        return case

    def make(self, **options):
        return (self.layer or OPERATIONS[self.operation].torch_layer)(self.case, **options).train()


CHAINS = (
    Chain("LayerNorm alone", "layer_norm", "2112x4096"),
    Chain("dropout + add + LayerNorm", "dropout_add_norm", "prenorm dropout+add+LayerNorm 2112x4096"),
    Chain("GELU + dropout", "bias_act_dropout", "bias+gelu+dropout 2112x4096", BehindLinear),
    Chain("RMSNorm + SiLU gate", "rms_norm_gated", "RMSNorm+silu 67584x128", Gated),
    Chain("QK norm + rotary", "qk_norm", "QKNorm(rotary) 4x528x32x128", rotary, inputs=2),
    Chain("gate + add + AdaLayerNorm", "ada_norm", "gate+add+adaLN 4x1848x1152"),
    Chain("GroupNorm + SiLU", "group_norm_act", "group_norm+silu 64x1280x8x8"),
    Chain("BatchNorm + add + ReLU", "batch_norm_act", "batch_norm+add+relu 32x64x56x56 channels_last"),
)


def counted(call):
    """What a call returns, and its operators as (name, bytes)."""
    with Operators() as operators, AsOnCuda(operators.moved):
        return call(), operators.moved


def measure(chain):
    """Yields a record for each direction of a chain."""
    case = chain.case
    layer = chain.make(device="meta", dtype=case.dtype)
    x = case.like_input(torch.empty, "meta").requires_grad_()
    dy = case.like_output(torch.empty, "meta")
    y, forward = counted(lambda: layer(x))
    _, backward = counted(lambda: torch.autograd.grad(y, (x, *layer.parameters()), dy))
    for direction, operators in zip(DIRECTIONS, (forward, backward)):
        yield dict(
            operation=chain.operation,
            case=str(case),
            direction=direction,
            elements=chain.inputs * prod(case.shape),
            torch_operators=[dict(name=name, bytes=moved) for name, moved in operators],
            moved_bytes=sum(moved for _, moved in operators),
        )


def add_arguments(parser):
    pass


def run(arguments, budget):
    wanted = arguments.operations or OPERATIONS
    for chain in budget.within([chain for chain in CHAINS if chain.operation in wanted]):
        yield from measure(chain)


def table(records):
    headers = "case | direction | launches | moved | operators: moved"
    rows = []
    for record in records:
        operators, elements = record["torch_operators"], record["elements"]
        told = [f"{one['name'].removeprefix('aten::')}: {one['bytes'] / elements:.2f}" for one in operators]
        moved = f"{record['moved_bytes'] / elements:.2f}"
        rows.append((record["case"], record["direction"], len(operators), moved, ", ".join(told)))
    return tables.text(headers, rows, grouped=1)


CAPTION = "bytes an element that torch's operators move at least in eager mode, each one launch; not run"

"""Statistics of what the layers of a model return, and of its gradients, taken while the model runs."""

import contextlib
import math
import threading
from dataclasses import dataclass

import torch
from torch.utils._pytree import keystr, tree_flatten_with_path

from normreg import nn
from normreg.models.report import ROOT, class_name
from normreg.ops.batch_norm import BatchNormFunction

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CHUNK = 2**22  # elements that are float64 at a time, 32 MiB


@dataclass(frozen=True)
class Statistics:
    """Of all elements of one tensor, in float64."""

    mean: float
    variance: float  # mean of (x - mean)^2
    zeros: float  # share of elements that are exactly 0
    elements: int

    @property
    def rms(self):
        """Root of the mean square, which mean, deviation and norm all show in."""
        return math.sqrt(self.variance + self.mean**2)

    @property
    def norm(self):
        return math.sqrt(self.elements) * self.rms


class Moments:
    """Of a tensor: kept on its device, so that nothing waits for it, until they are asked for."""

    def __init__(self, counts, means, variances, zeros):
        self.counts, self.values = counts, torch.stack([means, variances, zeros])

    @classmethod
    def of(cls, x):
        x = x.detach()
        chunks = x.reshape(-1).split(CHUNK)
        moments = [torch.var_mean(chunk.double(), correction=0) for chunk in chunks]
        variances, means = (torch.stack(column) for column in zip(*moments))
        zeros = torch.stack([(chunk == 0).sum() for chunk in chunks]).double()
        return cls([chunk.numel() for chunk in chunks], means, variances, zeros)

    @classmethod
    def of_batch_norm(cls, module, y):
        """Without reading y: of each channel mean bias, variance weight^2 var / (var + eps)."""
        *_, var = y.grad_fn.saved_tensors
        variances = var.double() / (var.double() + module.eps)
        if module.weight is not None:
            variances *= module.weight.detach().double().square()
        means = torch.zeros_like(variances) if module.bias is None else module.bias.detach().double()
        elements = y.numel() // len(means)
        zeros = elements * ((means == 0) & (variances == 0)).double()
        return cls([elements] * len(means), means, variances, zeros)

    def statistics(self):
        """Chan's merge."""
        means, variances, zeros = self.values.cpu()
        counts = torch.tensor(self.counts, dtype=torch.float64)
        elements = sum(self.counts)
        mean = (counts * means).sum() / elements
        variance = (counts * (variances + (means - mean).square())).sum() / elements
        return Statistics(mean.item(), variance.item(), (zeros.sum() / elements).item(), elements)


def _knows_its_output(module, y):
    """Whether normreg's kernel has computed the statistics of y, and they can be had without side effects."""
    return (
        type(module) in BATCH_NORMS
        and type(y.grad_fn) is BatchNormFunction._backward_cls
        # what unpacks them may compute the layer again, as activation checkpointing does
        and torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    )


class Recorder:
    """Notes the output of every call of a module inside which no other module ran, and its gradient.

    As `explain` does, without hooks, which would show to the model and to torch.compile.
    """

    def __init__(self, model):
        self.names = {module: name or ROOT for name, module in model.named_modules()}
        self.thread = threading.get_ident()
        self.calls = {}
        self.rows, self.handles = [], []

    @contextlib.contextmanager
    def following(self):
        real = torch.nn.Module.__call__

        def call(module, *inputs, **options):
            before = len(self.rows)
            output = real(module, *inputs, **options)
            if len(self.rows) == before and threading.get_ident() == self.thread:
                self.add(module, output)
            return output

        torch.nn.Module.__call__ = call
        try:
            yield
        finally:
            torch.nn.Module.__call__ = real

    def forget(self):
        """The hooks of outputs, one of which may be a parameter of the model."""
        for handle in self.handles:
            handle.remove()

    def add(self, module, output):
        self.calls[module] = self.calls.get(module, 0) + 1
        name = self.names.get(module, "(not a part of the model)")
        if self.calls[module] > 1:
            name += f", call {self.calls[module]}"
        for path, y in tree_flatten_with_path(output)[0]:
            if not measurable(y):
                continue
            moments = Moments.of_batch_norm(module, y) if _knows_its_output(module, y) else Moments.of(y)
            row = [name + keystr(path), class_name(type(module)), tuple(y.shape), moments, None]
            self.rows.append(row)
            if y.requires_grad:
                self.handles.append(y.register_hook(lambda dy, row=row: _note(row, dy)))

    def measured(self):
        """(name, class, shape, statistics, statistics of the gradient or None) of each output."""
        return [
            (*what, y.statistics(), None if dy is None else dy.statistics()) for *what, y, dy in self.rows
        ]


def _note(row, dy):
    row[-1] = Moments.of(dy)


def measurable(x):
    return (
        isinstance(x, torch.Tensor)
        and x.is_floating_point()
        and x.layout is torch.strided
        and not x.is_nested
        and x.numel() > 0
    )

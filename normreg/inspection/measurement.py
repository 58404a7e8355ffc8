"""Measures what the layers of a model return, and its gradients, while the model runs."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._pytree import keystr, tree_flatten_with_path
from torch.utils.hooks import RemovableHandle

from normreg import nn
from normreg.inspection.observer import Observer
from normreg.models.registry import class_name
from normreg.ops.batch_norm import BatchNormFunction

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CHUNK = 2**22  # elements that are float64 at a time, 32 MiB


@dataclass(frozen=True)
class Statistics:
    """The statistics of all elements of one tensor, in float64."""

    mean: float
    variance: float  # mean of (x - mean)^2
    zeros: float  # share of elements that are exactly 0
    elements: int

    @property
    def rms(self) -> float:
        """The root of the mean square, to which mean and deviation both contribute."""
        return math.sqrt(self.variance + self.mean**2)

    @property
    def norm(self) -> float:
        """The root of the sum of squares."""
        return math.sqrt(self.elements) * self.rms


class Moments:
    """Moments of a tensor's chunks or channels, on its device until they are asked for: nothing waits."""

    def __init__(
        self, counts: list[int], means: torch.Tensor, variances: torch.Tensor, zeros: torch.Tensor
    ) -> None:
        self.counts, self.values = counts, torch.stack([means, variances, zeros])

    @classmethod
    def of(cls, x: torch.Tensor) -> "Moments":
        """The moments of any tensor, chunk by chunk."""
        x = x.detach()
        chunks = x.reshape(-1).split(CHUNK)
        moments = [torch.var_mean(chunk.double(), correction=0) for chunk in chunks]
        variances, means = (torch.stack(column) for column in zip(*moments))
        zeros = torch.stack([(chunk == 0).sum() for chunk in chunks]).double()
        return cls([chunk.numel() for chunk in chunks], means, variances, zeros)

    @classmethod
    def of_batch_norm(cls, module: Any, y: Any) -> "Moments":
        """The moments of y without reading it: means are bias, variances weight^2 var / (var + eps)."""
        *_, var = y.grad_fn.saved_tensors
        variances = var.double() / (var.double() + module.eps)
        if module.weight is not None:
            variances *= module.weight.detach().double().square()
        means = torch.zeros_like(variances) if module.bias is None else module.bias.detach().double()
        elements = y.numel() // len(means)
        zeros = elements * ((means == 0) & (variances == 0)).double()
        return cls([elements] * len(means), means, variances, zeros)

    def statistics(self) -> Statistics:
        """The statistics of all elements, by Chan's merge."""
        means, variances, zeros = self.values.cpu()
        counts = torch.tensor(self.counts, dtype=torch.float64, device="cpu")
        elements = sum(self.counts)
        mean = (counts * means).sum() / elements
        variance = (counts * (variances + (means - mean).square())).sum() / elements
        return Statistics(mean.item(), variance.item(), (zeros.sum() / elements).item(), elements)


def _knows_its_output(module: torch.nn.Module, y: torch.Tensor) -> bool:
    """Whether normreg's kernel has computed the statistics of y, and they can be had without side effects."""
    return (
        type(module) in BATCH_NORMS
        and type(y.grad_fn) is BatchNormFunction._backward_cls
        # what unpacks them may compute the layer again, as activation checkpointing does
        and torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    )


class Row:
    """The output of a call, and what is measured of it."""

    def __init__(self, name: str, kind: str, y: torch.Tensor, activation: Moments) -> None:
        self.name, self.kind, self.shape = name, kind, tuple(y.shape)
        self.activation = activation
        self.gradient: Moments | None = None

    def receive(self, dy: torch.Tensor) -> None:
        """Measures the gradient."""
        self.gradient = Moments.of(dy)


class Measurements(Observer):
    """Measures the output of every call of a module inside which no other module ran, and its gradient."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.calls: Counter[torch.nn.Module] = Counter()
        self.handles: list[RemovableHandle] = []
        self.without_gradients = ""  # the first module that ran where none are recorded

    def _before(self, module: torch.nn.Module, inputs: Sequence[Any]) -> None:
        super()._before(module, inputs)
        if self.is_here() and not (torch.is_grad_enabled() or self.without_gradients):
            self.without_gradients = f"{self.name_of(module)}, a {class_name(type(module))}"

    def forget(self) -> None:
        """Removes the hooks of outputs, one of which may be a parameter of the model."""
        for handle in self.handles:
            handle.remove()

    def returned(self, module: torch.nn.Module, inputs: Sequence[Any], output: Any) -> None:
        if any(isinstance(around, ParametrizationList) for around in (module, *(m for m, _ in self.running))):
            return  # it computes a weight; the layer that has the weight is the layer
        self.calls[module] += 1
        name = self.name_of(module)
        if self.calls[module] > 1:
            name += f", call {self.calls[module]}"
        for path, y in tree_flatten_with_path(output)[0]:
            if not measurable(y):
                continue
            if y.is_meta:
                raise ValueError(
                    f"expected tensors with values, got one on the meta device from layer {name!r}, a "
                    f"{class_name(type(module))}: move the model to a device by model.to_empty(...), "
                    f"initialise it, and give it inputs there"
                )
            moments = Moments.of_batch_norm(module, y) if _knows_its_output(module, y) else Moments.of(y)
            row = Row(name + keystr(path), class_name(type(module)), y, moments)
            self.notes.append(row)
            if y.requires_grad:
                self.handles.append(y.register_hook(row.receive))


def measurable(x: Any) -> bool:
    """Whether x is a tensor that has statistics."""
    return (
        isinstance(x, torch.Tensor)
        and x.is_floating_point()
        and x.layout is torch.strided
        and not x.is_nested
        and x.numel() > 0
    )

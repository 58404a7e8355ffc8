"""Layers of several of torch's operations, what torch has to offer; `fuse` makes each normreg's, in place."""

import copy
import functools
import inspect
import weakref

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _disable_current_modes

import normreg
from normreg import functional

from .calls import ACTIVATIONS
from .case import error_against_float64, is_mask_of_dropout
from .dropping import dropped


class Residual(torch.nn.Module):
    """A residual branch, of which `replace` sees the layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        result = self.layer(x * 2, residual=x)
        return result if isinstance(result, torch.Tensor) else torch.cat(result)


class Modulated(torch.nn.Module):
    """An adaptive norm behind a gated sum, of which `replace` sees the layer; x has the modulations, too."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        scale, shift, gate = x.unbind(1)
        result = self.layer(x * 2, scale, shift, residual=x, gate=gate)
        return result if isinstance(result, torch.Tensor) else torch.cat(result)


class Gated(torch.nn.Module):
    """An input that is its own gate, of which `replace` sees the layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, gate=x)


class Composed(torch.nn.Module):
    """A formula as a layer whose parameters are its tensors beside x; `fuse` makes it normreg's."""

    def __init__(self, formula, fused, tensors, **options):
        super().__init__()
        self.function, self.fused, self.options = formula, fused, options
        self.drops = "training" in inspect.signature(formula).parameters
        for name, tensor in tensors.items():
            self.register_parameter(name, None if tensor is None else torch.nn.Parameter(tensor))

    def forward(self, x):
        mode = dict(training=self.training) if self.drops else {}
        return self.function(x, **self._parameters, **self.options, **mode)

    @property
    def p(self):
        return self.options.get("p", self.options.get("drop_prob"))

    def decisions(self, x):
        return x.shape[0] if "drop_prob" in self.options else x.numel()

    def dropping(self, keep):
        """A copy that drops by this mask."""
        twin = copy.deepcopy(self)
        twin.function = functools.partial(self.function, drop=dropped(keep))
        return twin

    def fuse(self):
        self.function = self.fused
        return self


class NormAct(torch.nn.Module):
    """What torch has to offer: BatchNorm, sum and activation, or GroupNorm and activation."""

    def __init__(self, norm, act, residual=None):
        super().__init__()
        self.norm, self.act = norm, act
        self.residual = None if residual is None else torch.nn.Parameter(residual)

    def forward(self, x):
        z = self.norm(x)
        return ACTIVATIONS[self.act](z if self.residual is None else z + self.residual)

    def fuse(self):
        self.__class__, self.norm.__class__ = FusedNormAct, FUSED[type(self.norm)]
        self.norm.act, self.norm.negative_slope = self.act, 0.01
        return self


FUSED = {torch.nn.BatchNorm2d: normreg.BatchNormAct2d, torch.nn.GroupNorm: normreg.GroupNormAct}


class FusedNormAct(NormAct):
    def forward(self, x):
        return self.norm(x) if self.residual is None else self.norm(x, self.residual)


class Both(torch.autograd.Function):
    """Returns y, and gives a copy of its gradient to z, so that both are wanted and lie apart, as in a model.

    The copy is kept for the next time that the same gradient comes, and not among what is counted.
    """

    of, copy = None, None

    @staticmethod
    def forward(ctx, y, z):
        return y.view_as(y)

    @staticmethod
    def backward(ctx, dy):
        if Both.of is None or Both.of() is not dy:
            with _disable_current_modes():
                Both.of, Both.copy = weakref.ref(dy), dy.clone()
        return dy, Both.copy


class Seam(torch.nn.Module):
    """What torch has to offer: y, where the block is pre-norm with the gradient of z."""

    def __init__(self, norm, residual, prenorm, p):
        super().__init__()
        self.norm, self.residual, self.prenorm = norm, torch.nn.Parameter(residual), prenorm
        self.p, self.drop = p, F.dropout

    def forward(self, x):
        z = self.residual + self.drop(x, self.p, self.training)
        y = self.norm(z)
        return Both.apply(y, z) if self.prenorm else y

    def decisions(self, x):
        return x.numel()

    def dropping(self, keep):
        """A copy that drops by this mask."""
        twin = copy.deepcopy(self)
        twin.drop = dropped(keep)
        return twin

    def fuse(self):
        self.__class__ = FusedSeam
        return self


class FusedSeam(Seam):
    def forward(self, x):
        norm = self.norm
        layer_norm, rms_norm = functional.dropout_add_layer_norm, functional.dropout_add_rms_norm
        fused = layer_norm if isinstance(norm, torch.nn.LayerNorm) else rms_norm
        options = dict(p=self.p, training=self.training, eps=norm.eps, prenorm=self.prenorm)
        result = fused(x, self.residual, norm.normalized_shape, *norm.parameters(), **options)
        return Both.apply(*result) if self.prenorm else result


def error_under_mask(reference, layer, x, dy, y, gradients):
    """The largest relative error under the layer's own mask, read off dx; inf where that cannot be one."""
    keep = gradients[0] != 0
    if reference.p:
        if not is_mask_of_dropout(keep, reference.p, reference.decisions(x)):
            return float("inf")
        reference = reference.dropping(keep)
    return error_against_float64(reference, layer, x, dy, y, gradients)

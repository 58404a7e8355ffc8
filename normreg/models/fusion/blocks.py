"""Modules whose forward `replace(fuse=True)` rewrote: what they run, and when what they ran before."""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from normreg import functional, nn
from normreg.models import registry
from normreg.models.fusion import tracing
from normreg.models.registry import has_global_hooks, why_not_bypassed
from normreg.nn.batch_norm import call_batch_norm
from normreg.ops.activations import activation_in_torch, activation_of


@dataclass(frozen=True)
class Part:
    """A module that the rewritten forward does not call."""

    path: tuple[str, ...]
    kind: type
    act: tuple | None  # name and slope, of an activation

    def __reduce__(self):
        derived = issubclass(self.kind, registry.Derived)  # which has no import path
        return _part, (self.path, self.kind.original if derived else self.kind, self.act)

    def is_unchanged(self, block):
        module = _inner(block, self.path)
        return (
            type(module) is self.kind
            and why_not_bypassed(module) is None
            and (self.act is None or activation_of(module) == self.act)
        )


def _part(path, kind, act):
    return Part(path, registry.counterpart(kind) or kind, act)


def _inner(module, path):
    """get_submodule without its questions; None where there is none."""
    for name in path:
        if (module := module._modules.get(name)) is None:
            return None
    return module


@dataclass(frozen=True)
class Code:
    """Python code of a torch.fx graph, and the objects that it names."""

    source: str
    names: tuple


@functools.cache
def _function(code):
    names = dict(code.names, torch=torch)
    exec(compile(code.source, "<normreg.models.fusion.blocks>", "exec"), names)
    return names["forward"]


@dataclass(frozen=True)
class Plan:
    """What a fused module runs, and under which conditions."""

    training: Code
    evaluation: Code
    passed_on: bool  # whether it takes the arguments that have a default, or is for calls without them
    parts: tuple[Part, ...]
    # when its forward was traced
    settings: tuple  # (name, value) of its own attributes
    contents: tuple  # (path, names) of what it and the lists and dictionaries inside contain

    def __deepcopy__(self, memo):
        return self

    def holds(self, block):
        """Whether everything is as it was when the forward was traced."""
        attributes = vars(block)
        for name, value in self.settings:
            if attributes.get(name, self) != value:
                return False
        for path, names in self.contents:
            if _contents(_inner(block, path)) != names:
                return False
        return not has_global_hooks() and all(part.is_unchanged(block) for part in self.parts)


def has_forward(module):
    """nn.ModuleList, for one, has none."""
    return type(module).forward is not torch.nn.Module.forward


def premises(module):
    """What its forward may decide by: attributes that are numbers and words, and what it contains."""
    known = vars(torch.nn.Module())
    settings = tuple(
        (name, value)
        for name, value in vars(module).items()
        if name not in known and (value is None or type(value) in (bool, int, float, str))
    )
    lists = ((name, inner) for name, inner in module.named_modules() if not name or not has_forward(inner))
    return settings, tuple((path_of(name), _contents(inner)) for name, inner in lists)


def path_of(name):
    """("0", "norm") of "0.norm"."""
    return tuple(name.split(".")) if name else ()


def _contents(module):
    if module is None:
        return None
    owned = module._modules, module._parameters, module._buffers
    return tuple([name for entries in owned for name in entries if entries[name] is not None])


class Fused:
    """What the derived classes have in common: `original`, the class they are derived from, and `plan`."""

    def __reduce_ex__(self, protocol):
        # a derived class has no import path of its own to be found by
        _, _, *state = super().__reduce_ex__(max(protocol, 2))
        return _new, (type(self).original, type(self).plan), *state


def _new(original, plan):
    return original.__new__(derived(original, plan))


@functools.cache
def derived(original, plan):
    """The class that a module of class `original` gets, to run `plan`."""
    names, defaults, positional = tracing.signature(original)
    order = names + tuple(defaults) if plan.passed_on else names
    all_by_position = len(order) if order == positional[: len(order)] else None
    training, evaluation = _function(plan.training), _function(plan.evaluation)

    def arguments(inputs, options):
        """What `training` and `evaluation` take, or None where they are not for this call."""
        given = dict(zip(positional, inputs), **options)
        if len(given) < len(inputs) + len(options):  # too many, or one twice
            return None
        taken = [given.pop(name, defaults.get(name)) for name in order]
        return taken if all(value is defaults.get(name, plan) for name, value in given.items()) else None

    @functools.wraps(original.forward)
    def forward(self, *inputs, **options):
        plain = len(inputs) == all_by_position and not options
        taken = inputs if plain else arguments(inputs, options)
        if taken is None or not plan.holds(self):
            return original.forward(self, *inputs, **options)
        for x in taken[: len(names)]:
            if not isinstance(x, torch.Tensor):
                return original.forward(self, *inputs, **options)
        return (training if self.training else evaluation)(self, *taken)

    attributes = dict(forward=forward, original=original, plan=plan, __module__=__name__)
    return type(original.__name__, (Fused, original), attributes | {"__doc__": original.__doc__})


def computed_inside(model):
    """{path of a module: path of the fused module that computes it} of a model."""
    return {
        ".".join([*path_of(name), *part.path]): name
        for name, module in model.named_modules()
        if isinstance(module, Fused)
        for part in type(module).plan.parts
    }


def batch_norm_act(x, residual, norm, act, negative_slope):
    """act(norm(x) + residual)"""
    options = dict(act=act, negative_slope=negative_slope)
    if residual is None or isinstance(residual, torch.Tensor):
        return call_batch_norm(norm, functional.batch_norm_act, x, residual=residual, **options)
    return activation_in_torch(norm(x) + residual, act, negative_slope)


def act_dropout(x, act, negative_slope, p, training):
    """dropout(act(x))"""
    return functional.bias_act_dropout(x, None, act, p, training, negative_slope=negative_slope)


def dropout_add(x, residual, p, training):
    """residual + dropout(x)"""
    if not _can_be_added(x, residual):
        return residual + F.dropout(x, p, training)
    return functional.dropout_add(x, residual, p, training)


def _layer_norm(norm):
    return functional.dropout_add_layer_norm, norm.normalized_shape, norm.weight, norm.bias, norm.eps


def _rms_norm(norm):
    return functional.dropout_add_rms_norm, norm.normalized_shape, norm.weight, norm.eps


def _llama_rms_norm(norm):
    return functional.dropout_add_rms_norm, norm.weight.shape, norm.weight, norm.variance_epsilon


# the forward of a norm: what adds before it, and its parameters
NORMS = {
    nn.LayerNorm.forward: _layer_norm,
    nn.RMSNorm.forward: _rms_norm,
    registry.llama_rms_norm: _llama_rms_norm,
}


def is_norm(cls):
    """Whether it is one that a sum can be computed with."""
    return cls.forward in NORMS


def dropout_add_norm(x, residual, norm, p, training, prenorm):
    """y = norm(residual + dropout(x)), with prenorm also the sum."""
    if not _can_be_added(x, residual, norm.weight if isinstance(norm, registry.Derived) else residual):
        z = residual + F.dropout(x, p, training)
        y = norm(z)
        return (y, z) if prenorm else y
    arguments_of = NORMS[type(norm).forward]
    function, shape, *parameters, eps = arguments_of(norm)
    return function(x, residual, shape, *parameters, p, training, eps, prenorm=prenorm)


def _can_be_added(x, *others):
    """Nothing is broadcast or promoted."""
    return (
        all(isinstance(tensor, torch.Tensor) for tensor in (x, *others))
        and all(tensor.dtype == x.dtype for tensor in others)
        and x.shape == others[0].shape
    )

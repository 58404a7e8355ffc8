"""Modules whose forward `replace(fuse=True)` rewrote: what they run, and when they run their old forward."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normreg import functional, nn
from normreg.models.fusion import tracing
from normreg.models.hooks import has_global_hooks, why_not_bypassed
from normreg.models.registry import Derived, Foreign, foreign_counterpart
from normreg.models.transformers import llama_rms_norm
from normreg.nn.batch_norm import call_batch_norm
from normreg.ops.activations import activation_in_torch, activation_of


@dataclass(frozen=True)
class Part:
    """A module that the rewritten forward does not call."""

    path: tuple[str, ...]
    kind: Any  # a class
    act: tuple[Any, ...] | None  # name and slope, where it is an activation

    def __reduce__(self) -> tuple[Any, ...]:
        foreign = issubclass(self.kind, Foreign)  # which has no import path
        return _part, (self.path, self.kind.original if foreign else self.kind, self.act)

    def is_unchanged(self, block: torch.nn.Module) -> bool:
        """Whether the module is what it was, and nothing listens to its calls."""
        module = _inner(block, self.path)
        return (
            module is not None
            and type(module) is self.kind
            and why_not_bypassed(module) is None
            and (self.act is None or activation_of(module) == self.act)
        )


def _part(path: tuple[str, ...], kind: Any, act: tuple[Any, ...] | None) -> Part:
    return Part(path, foreign_counterpart(kind) or kind, act)


def _inner(module: torch.nn.Module, path: tuple[str, ...]) -> torch.nn.Module | None:
    """The module at a path, or None where there is none: get_submodule without its checks."""
    inner: torch.nn.Module | None = module
    for name in path:
        if inner is None or (inner := inner._modules.get(name)) is None:
            return None
    return inner


@dataclass(frozen=True)
class Code:
    """The Python code of a torch.fx graph, and the objects that it names."""

    source: str
    names: tuple[tuple[str, Any], ...]


@functools.cache
def _function(code: Code) -> Callable[..., Any]:
    names = dict(code.names, torch=torch)
    exec(compile(code.source, "<normreg.models.fusion.blocks>", "exec"), names)
    return names["forward"]


@dataclass(frozen=True)
class Rewritten:
    """The forward that a fused module runs, and the conditions under which it does."""

    training: Code
    evaluation: Code
    passed_on: bool  # whether the code takes the arguments that have a default, or is for calls without them
    parts: tuple[Part, ...]
    # the module when its forward was traced
    settings: tuple[tuple[str, Any], ...]  # (name, value) of its own attributes
    contents: tuple[tuple[Any, ...], ...]  # (path, names) of it and of lists and dictionaries inside it

    def __deepcopy__(self, memo: Any) -> "Rewritten":
        return self

    def holds(self, block: torch.nn.Module) -> bool:
        """Whether everything is as it was when the forward was traced."""
        attributes = vars(block)
        for name, value in self.settings:
            if attributes.get(name, self) != value:
                return False
        for path, names in self.contents:
            if _contents(_inner(block, path)) != names:
                return False
        return not has_global_hooks() and all(part.is_unchanged(block) for part in self.parts)


def has_forward(module: torch.nn.Module) -> bool:
    """Whether the module can be called, which nn.ModuleList, for one, cannot."""
    return type(module).forward is not torch.nn.Module.forward


def premises(module: torch.nn.Module) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """`settings` and `contents` of `Rewritten`: all that the module's forward may decide by."""
    known = vars(torch.nn.Module())
    settings = tuple(
        (name, value)
        for name, value in vars(module).items()
        if name not in known and (value is None or type(value) in (bool, int, float, str))
    )
    lists = ((name, inner) for name, inner in module.named_modules() if not name or not has_forward(inner))
    return settings, tuple((path_of(name), _contents(inner)) for name, inner in lists)


def path_of(name: str) -> tuple[str, ...]:
    """The names on the way to a module: ("0", "norm") for "0.norm"."""
    return tuple(name.split(".")) if name else ()


def _contents(module: torch.nn.Module | None) -> tuple[str, ...] | None:
    if module is None:
        return None
    owned = module._modules, module._parameters, module._buffers
    return tuple([name for entries in owned for name in entries if entries[name] is not None])


class Fused(Derived):
    """The base of the classes of modules whose forward is rewritten."""

    rewritten: Rewritten

    @classmethod
    def recipe(cls) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _new, (cls.original, cls.rewritten)


def _new(original: Any, rewritten: Rewritten) -> Any:
    return original.__new__(derived(original, rewritten))


@functools.cache
def derived(original: Any, rewritten: Rewritten) -> type:
    """The class that a module of class `original` gets, to run `rewritten`."""
    names, defaults, positional = tracing.signature(original)
    order = names + tuple(defaults) if rewritten.passed_on else names
    all_by_position = len(order) if order == positional[: len(order)] else None
    training, evaluation = _function(rewritten.training), _function(rewritten.evaluation)

    def arguments(inputs: tuple[Any, ...], options: dict[str, Any]) -> list[Any] | None:
        """The arguments of `training` and `evaluation`, or None where they are not for this call."""
        given = dict(zip(positional, inputs), **options)
        if len(given) < len(inputs) + len(options):  # too many, or one twice
            return None
        taken = [given.pop(name, defaults.get(name)) for name in order]
        return taken if all(value is defaults.get(name, rewritten) for name, value in given.items()) else None

    @functools.wraps(original.forward)
    def forward(self: Any, *inputs: Any, **options: Any) -> Any:
        plain = len(inputs) == all_by_position and not options
        taken: Any = inputs if plain else arguments(inputs, options)
        if taken is None or not rewritten.holds(self):
            return original.forward(self, *inputs, **options)
        for x in taken[: len(names)]:
            if not isinstance(x, torch.Tensor):
                return original.forward(self, *inputs, **options)
        return (training if self.training else evaluation)(self, *taken)

    attributes = dict(forward=forward, original=original, rewritten=rewritten, __module__=__name__)
    return type(original.__name__, (Fused, original), attributes | {"__doc__": original.__doc__})


def computed_inside(model: torch.nn.Module) -> dict[str, str]:
    """{path of a module: path of the fused module that computes it}."""
    return {
        ".".join([*path_of(name), *part.path]): name
        for name, module in model.named_modules()
        if isinstance(module, Fused)
        for part in type(module).rewritten.parts
    }


def batch_norm_act(x: Tensor, residual: Any, norm: Any, act: str, negative_slope: float) -> Tensor:
    """act(norm(x) + residual)"""
    options = dict(act=act, negative_slope=negative_slope)
    if residual is None or isinstance(residual, torch.Tensor):
        return call_batch_norm(norm, functional.batch_norm_act, x, residual=residual, **options)
    return activation_in_torch(norm(x) + residual, act, negative_slope)


def act_dropout(x: Tensor, act: str, negative_slope: float, p: float, training: bool) -> Tensor:
    """dropout(act(x))"""
    return functional.bias_act_dropout(x, None, act, p, training, negative_slope=negative_slope)


def dropout_add(x: Tensor, residual: Any, p: float, training: bool) -> Tensor:
    """residual + dropout(x)"""
    if not _can_be_added(x, residual):
        return residual + F.dropout(x, p, training)
    return functional.dropout_add(x, residual, p, training)


def _layer_norm(norm: Any) -> tuple[Any, ...]:
    return functional.dropout_add_layer_norm, norm.normalized_shape, norm.weight, norm.bias, norm.eps


def _rms_norm(norm: Any) -> tuple[Any, ...]:
    return functional.dropout_add_rms_norm, norm.normalized_shape, norm.weight, norm.eps


def _llama_rms_norm(norm: Any) -> tuple[Any, ...]:
    return functional.dropout_add_rms_norm, norm.weight.shape, norm.weight, norm.variance_epsilon


# {forward of a norm: the arguments of the norm behind a sum, as function, shape, parameters and eps}
NORMS: dict[Any, Callable[[Any], tuple[Any, ...]]] = {
    nn.LayerNorm.forward: _layer_norm,
    nn.RMSNorm.forward: _rms_norm,
    llama_rms_norm: _llama_rms_norm,
}


def is_norm(cls: Any) -> bool:
    """Whether a sum in front of a norm of this class can be computed with it."""
    return cls.forward in NORMS


def dropout_add_norm(x: Tensor, residual: Any, norm: Any, p: float, training: bool, prenorm: bool) -> Any:
    """y = norm(residual + dropout(x)), with prenorm also the sum."""
    if not _can_be_added(x, residual, norm.weight if issubclass(type(norm), Foreign) else residual):
        z = residual + F.dropout(x, p, training)
        y = norm(z)
        return (y, z) if prenorm else y
    arguments_of = NORMS[type(norm).forward]
    function, shape, *parameters, eps = arguments_of(norm)
    return function(x, residual, shape, *parameters, p, training, eps, prenorm=prenorm)


def _can_be_added(x: Any, *others: Any) -> bool:
    """Whether nothing is broadcast or promoted."""
    return (
        all(isinstance(tensor, torch.Tensor) for tensor in (x, *others))
        and all(tensor.dtype == x.dtype for tensor in others)
        and x.shape == others[0].shape
    )

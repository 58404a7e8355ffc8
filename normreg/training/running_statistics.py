"""Freezes BatchNorm's running statistics, holds them during forward passes, or computes them anew.

All three work on torch.nn's and normreg's BatchNorm layers of a model, SyncBatchNorm included, in place.
"""

import contextlib
import importlib.util
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from normreg.models.checks import check_is_module, named_modules
from normreg.nn.frozen import freeze, is_frozen, training_flag, unfreeze
from normreg.training.batches import call, moved

Model = TypeVar("Model", bound=torch.nn.Module)
_HOLDING = threading.Lock()
# layers that are held: their own track_running_stats, and by how many
_HELD: weakref.WeakKeyDictionary[_BatchNorm, tuple[bool, int]] = weakref.WeakKeyDictionary()


def _batch_norms(model: torch.nn.Module) -> list[_BatchNorm]:
    check_is_module(model)
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def freeze_batch_norm(model: torch.nn.Module, affine: bool = True) -> int:
    """Makes the BatchNorm layers of a model normalise by their running statistics, and never update them.

    A frozen layer computes as in evaluation whatever `model.train()` says: its `training` reads False, and
    what `train` and `eval` set meanwhile holds once it is unfrozen. `unfreeze_batch_norm` undoes just this.

    Args:
        model: a module; its layers stay the objects they were, of a class derived from their own.
        affine: whether weight and bias are frozen as well, by `requires_grad_(False)`.

    Returns the number of layers that were not frozen before. A frozen one is frozen anew, with this `affine`.
    Raises TypeError for what is no module, ValueError for layers without running statistics to normalise by
    and for lazy ones; then nothing is frozen.

    Equivalent, until the next `model.train()`::

        for layer in batch_norm_layers:
            layer.eval()
            layer.requires_grad_(not affine)
    """
    layers = _batch_norms(model)
    for layer in layers:
        if layer.running_mean is None:
            raise ValueError(
                f"expected BatchNorm layers with running statistics, got {layer}: "
                "it has none to normalise by; leave it out, or make it with track_running_stats=True"
            )
        if isinstance(layer, LazyModuleMixin):
            raise ValueError(
                f"expected BatchNorm layers that have their statistics, got {layer}, which its first call "
                "completes: call the model once before"
            )
    newly = len(layers) - unfreeze_batch_norm(model)
    for layer in layers:
        trained = [name for name, p in layer.named_parameters(recurse=False) if affine and p.requires_grad]
        freeze(layer, tuple(trained))
    return newly


def unfreeze_batch_norm(model: torch.nn.Module) -> int:
    """Undoes `freeze_batch_norm`: gives back the class of layers, and the requires_grad that it took.

    Returns the number of layers that were frozen. Raises TypeError for what is no module.
    """
    layers = [layer for layer in _batch_norms(model) if is_frozen(layer)]
    for layer in layers:
        unfreeze(layer)
    return len(layers)


@contextlib.contextmanager
def running_statistics_held(model: Model) -> Iterator[Model]:
    """Within it, forward passes in training leave the BatchNorm layers' running statistics as they are.

    Batches are normalised by their own statistics as ever; running_mean, running_var and num_batches_tracked
    do not move, so neither does a cumulative average (`momentum=None`). In evaluation nothing is different.
    For the second forward of a step, an adversarial or teacher's batch, or activation checkpointing. Layers
    are as they were afterwards, also after an exception. It can be nested.

    Example::

        with normreg.running_statistics_held(model):
            perturbed_loss(model, x).backward()

    Raises TypeError for what is no module.
    """
    layers = _batch_norms(model)
    try:
        with _HOLDING:
            for layer in layers:
                _hold(layer)
        yield model
    finally:
        with _HOLDING:
            for layer in layers:
                _let_go(layer)


def _hold(layer: _BatchNorm) -> None:
    """Counts who holds the layer: other threads may, until later than this one."""
    flag, holders = _HELD.get(layer, (layer.track_running_stats, 0))
    _HELD[layer] = flag, holders + 1
    # torch's own switch: in training with False, batch statistics, and no buffer is touched;
    # in evaluation buffers that exist are used all the same
    layer.track_running_stats = False


def _let_go(layer: _BatchNorm) -> None:
    flag, holders = _HELD.pop(layer)
    if holders > 1:
        _HELD[layer] = flag, holders - 1
    else:
        layer.track_running_stats = flag


def _shown(loader: Any) -> Iterable[Any]:
    """The loader with a progress bar on a terminal, where rich is installed."""
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        return loader
    console, progress = (importlib.import_module(f"rich.{name}") for name in ("console", "progress"))
    total = len(loader) if hasattr(loader, "__len__") else None
    options = dict(total=total, console=console.Console(stderr=True), transient=True)
    return progress.track(loader, "Running statistics", **options)


def recalibrate_batch_norm(
    model: torch.nn.Module,
    loader: Iterable[Any],
    device: torch.device | int | str | None = None,
    progress: bool = True,
    *,
    forward: Callable[[Any, Any], Any] | None = None,
) -> int:
    """Replaces the running statistics of a model's BatchNorm layers by averages over a loader's batches.

    Use it after weights were averaged, pruned or loaded from elsewhere. It makes one pass in training mode
    without gradients, and weighs every batch alike. Layers that are frozen, or whose statistics are held,
    keep theirs. Momentum and the training flag of every module are afterwards as before, and after an
    exception, or for batches that leave statistics which are not finite, so are all buffers of the model.

    Args:
        model: called with each batch: by name with what a mapping holds, with the first entry of a list or a
            tuple, in which targets follow, else with the batch itself.
        loader: batches, of the training data.
        device: where the tensors of batches are moved to, in mappings, lists and tuples too; None leaves them
            where they are.
        progress: whether to show a bar, on a terminal, with `rich` installed (`pip install rich`).
        forward: called as forward(model, batch) in place of the model, for batches of another kind.

    Returns the number of batches. Raises TypeError for what is no module, for a `forward` that cannot be
    called and for batches that the model's forward does not take, ValueError for a loader without batches and
    for statistics that are not finite.

    Equivalent::

        for layer in batch_norm_layers:
            layer.reset_running_stats()
            layer.momentum = None    # the cumulative average
        model.train()
        with torch.no_grad():
            for x in loader:
                model(x)
    """
    layers = [layer for layer in _batch_norms(model) if layer.running_mean is not None]
    if forward is not None and not callable(forward):
        raise TypeError(
            f"expected forward to be a function (model, batch), got {type(forward).__name__}: pass such as "
            f"lambda model, batch: model(batch.images)"
        )
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise TypeError(
            f"expected loader to be an iterable of batches, got {type(loader).__name__}: pass a "
            f"DataLoader, or a list of batches"
        )
    moving = [layer for layer in layers if layer.track_running_stats and not is_frozen(layer)]
    flags = [(module, training_flag(module)) for module in model.modules()]
    momenta = [(layer, layer.momentum) for layer in moving]
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    batches = 0
    try:
        model.train()
        for layer in moving:
            layer.reset_running_stats()
            layer.momentum = None
        for batch in (_shown(loader) if progress else loader) if layers else ():
            batches += 1
            with torch.no_grad():
                (forward or call)(model, batch if device is None else moved(batch, device))
        if layers and not batches:
            raise ValueError(
                "expected a loader with batches, got an empty one: pass a DataLoader or a list of batches, "
                "because an iterator that was used is empty"
            )
        for layer in moving:
            statistics: list[Any] = [layer.running_mean, layer.running_var]
            if not all(statistic.isfinite().all() for statistic in statistics):
                name = next(name for name, module in named_modules(model) if module is layer)
                raise ValueError(
                    f"expected batches that give finite statistics, got nan or inf for {name}: "
                    "look for nan, inf or a single value per channel in the loader"
                )
    except BaseException:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
        raise
    finally:
        for layer, momentum in momenta:
            layer.momentum = momentum
        for module, flag in flags:
            module.training = flag
    return batches

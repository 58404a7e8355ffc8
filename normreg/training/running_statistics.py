"""Freezes BatchNorm's running statistics, holds them during forward passes, or computes them anew.

All three work on torch.nn's and normreg's BatchNorm layers of a model, SyncBatchNorm included, in place.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from normreg.models.checks import check_is_module

Model = TypeVar("Model", bound=torch.nn.Module)


def _batch_norms(model: torch.nn.Module) -> list[_BatchNorm]:
    check_is_module(model)
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


class _Frozen:
    """The hooks that put a frozen layer in evaluation during its forward, copied and pickled with it."""

    def __init__(self, trained: list[str]) -> None:
        self.trained = trained  # names of the parameters whose requires_grad was taken away
        self.flag = False  # the layer's own `training`, meanwhile

    def __call__(self, layer: torch.nn.Module, inputs: Any) -> None:
        self.flag, layer.training = layer.training, False

    def after(self, layer: torch.nn.Module, inputs: Any, output: Any) -> None:
        """The hook behind the forward."""
        layer.training = self.flag


def _frozen(layer: torch.nn.Module) -> _Frozen | None:
    return next((hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, _Frozen)), None)


def freeze_batch_norm(model: torch.nn.Module, affine: bool = True) -> int:
    """Makes the BatchNorm layers of a model normalise by their running statistics, and never update them.

    A frozen layer computes as in evaluation whatever `model.train()` says; its `training` flag keeps what
    `train` and `eval` set. `unfreeze_batch_norm` undoes exactly this.

    Args:
        model: a module; its layers stay the objects they were, with a hook before and one after the forward.
        affine: whether weight and bias are frozen as well, by `requires_grad_(False)`.

    Returns the number of layers that were not frozen before. A frozen one is frozen anew, with this `affine`.
    Raises TypeError for what is no module, ValueError for layers without running statistics to normalise by;
    then nothing is frozen.

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
    newly = sum(_frozen(layer) is None for layer in layers)
    unfreeze_batch_norm(model)
    for layer in layers:
        trained = [name for name, p in layer.named_parameters(recurse=False) if affine and p.requires_grad]
        for name in trained:
            getattr(layer, name).requires_grad_(False)
        frozen = _Frozen(trained)
        layer.register_forward_pre_hook(frozen)
        layer.register_forward_hook(frozen.after, prepend=True, always_call=True)
    return newly


def unfreeze_batch_norm(model: torch.nn.Module) -> int:
    """Undoes `freeze_batch_norm`: takes its hooks away, and gives back the requires_grad that it took.

    Returns the number of layers that were frozen. Raises TypeError for what is no module.
    """
    count = 0
    for layer in _batch_norms(model):
        if frozen := _frozen(layer):
            for hooks, own in (
                (layer._forward_pre_hooks, frozen),
                (layer._forward_hooks, frozen.after),
            ):
                for key in [key for key, hook in hooks.items() if hook == own]:
                    del hooks[key]
                    layer._forward_hooks_always_called.pop(key, None)
            for name in frozen.trained:
                getattr(layer, name).requires_grad_()
            count += 1
    return count


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
    flags = [(layer, layer.track_running_stats) for layer in _batch_norms(model)]
    try:
        for layer, _ in flags:
            # torch's own switch: in training with False, batch statistics, and no buffer is touched;
            # in evaluation buffers that exist are used all the same
            layer.track_running_stats = False
        yield model
    finally:
        for layer, flag in flags:
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
) -> int:
    """Replaces the running statistics of a model's BatchNorm layers by averages over a loader's batches.

    Use it after weights were averaged, pruned or loaded from elsewhere. It makes one pass in training mode
    without gradients, by `torch.optim.swa_utils.update_bn`, which weighs every batch alike. Layers that are
    frozen, or whose statistics are held, keep theirs.
    Momentum and the training flag of every module are afterwards as before, and after an exception, or for
    batches that leave statistics which are not finite, so are all buffers of the model.

    Args:
        model: called with each batch, or with its first entry where that is a list or a tuple.
        loader: batches, of the training data.
        device: where batches are moved to; None leaves them where they are.
        progress: whether to show a bar, on a terminal, with `rich` installed (`pip install rich`).

    Returns the number of batches. Raises TypeError for what is no module and ValueError for a loader
    without batches and for statistics that are not finite.

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
    moving = [layer for layer in layers if layer.track_running_stats and not _frozen(layer)]
    flags = [(module, module.training) for module in model.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    kept = [(buffer, buffer.clone()) for layer in layers if layer not in moving for buffer in layer.buffers()]
    batches = 0
    to: Any = device  # a name, too, which torch's annotation forgets

    def counted() -> Iterator[Any]:
        nonlocal batches
        _put_back(kept)  # update_bn has reset all layers by now
        for batch in _shown(loader) if progress else loader:
            batches += 1
            yield batch

    try:
        update_bn(counted(), model, to)
        if layers and not batches:
            raise ValueError(
                "expected a loader with batches, got an empty one: is it an iterator used before?"
            )
        for layer in moving:
            statistics: list[Any] = [layer.running_mean, layer.running_var]
            if not all(statistic.isfinite().all() for statistic in statistics):
                raise ValueError(
                    f"expected batches that give finite statistics, got others for {layer}: "
                    "look for nan, inf or a single value per channel in the loader"
                )
    except BaseException:
        _put_back(before)
        raise
    finally:
        for layer, momentum in momenta:
            layer.momentum = momentum
        for module, flag in flags:
            module.training = flag
    return batches


@torch.no_grad()
def _put_back(buffers: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for buffer, value in buffers:
        buffer.copy_(value)

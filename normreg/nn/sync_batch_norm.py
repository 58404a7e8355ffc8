from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.types import Device

from normreg import functional
from normreg.distributed.groups import check_device, check_ranks_agree, group_of
from normreg.functional.tracing import leaf
from normreg.nn.arguments import OF_ACTIVATIONS, instead
from normreg.nn.batch_norm import _BatchNormForward, call_batch_norm
from normreg.nn.batch_norm_act import _BatchNormAct, bias_option
from normreg.nn.frozen import Frozen, frozen


@leaf
class SyncBatchNorm(_BatchNormForward, _BatchNorm):
    """`torch.nn.SyncBatchNorm` on `normreg.functional.sync_batch_norm`, on CPUs as well.

    Args:
        num_features, ..., bias: those of torch's layer; bias where this torch has it.
        process_group: a torch.distributed.ProcessGroup, whose batches are normalised together, or None for
            all ranks.

    In evaluation, with one rank and without torch.distributed it is BatchNorm. At the first batch, and at the
    first one of another dtype, the ranks compare their numbers of channels and dtypes, and where these differ
    every rank raises ValueError. Only those batches wait for the device; torch.compile leaves the comparison
    out. Raises RuntimeError where the layer has a process group but torch.distributed is not initialized.

    It does not derive from `torch.nn.SyncBatchNorm`, which DistributedDataParallel refuses on CPUs.
    """

    counterpart = torch.nn.SyncBatchNorm  # for `replace`
    process_group: Any = None
    _agreed: Any = None  # what the ranks have last found to be the same

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        options: dict[str, Any] = dict(device=device, dtype=dtype, **bias_option(bias))
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **options)
        self.process_group = process_group

    _check_input_dim: Any = torch.nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels: Any = torch.nn.SyncBatchNorm._check_non_zero_input_channels

    def _normalized(self, input: Tensor, batch_norm: Callable[..., Tensor], **options: Any) -> Tensor:
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        if not self.training or self._is_alone():
            return call_batch_norm(self, batch_norm, input, **options)
        group = group_of(self.process_group)
        if not torch.compiler.is_compiling():
            self._agree(input, group)
        return call_batch_norm(self, self._of_all_ranks, input, process_group=group, **options)

    def _is_alone(self) -> bool:
        distributed = torch.distributed
        if self.process_group is None and not (distributed.is_available() and distributed.is_initialized()):
            return True
        return distributed.get_world_size(group_of(self.process_group)) == 1

    def _agree(self, input: Tensor, group: Any) -> None:
        found = group.group_name, input.shape[1], input.dtype
        if found == self._agreed or (input.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        check_device(input, group)
        check_ranks_agree(input, group)
        self._agreed = found

    @staticmethod
    def _of_all_ranks(input: Tensor, *tensors: Any, training: bool, **options: Any) -> Tensor:
        return functional.sync_batch_norm(input, *tensors, **options)

    @classmethod
    def convert_sync_batchnorm(cls, module: torch.nn.Module, process_group: Any = None) -> torch.nn.Module:
        """`torch.nn.SyncBatchNorm.convert_sync_batchnorm`, whose layers are normreg's and keep activations.

        Args:
            module: a module; BatchNorm layers in it, torch's and normreg's, are replaced in place.
            process_group: a torch.distributed.ProcessGroup, whose batches are normalised together, or None
                for all ranks.

        Returns the module, or its replacement where it is a BatchNorm itself: SyncBatchNorm for BatchNorm1d,
        2d, 3d and SyncBatchNorm, SyncBatchNormAct for BatchNormAct1d, 2d, 3d and timm's BatchNormAct2d. A new
        layer has the parameters, buffers, modules, hooks and flags of the old one. Raises TypeError for a
        lazy or parametrized layer, and for another class derived from BatchNorm with a forward of its own,
        before anything is replaced.
        """
        for name, layer in module.named_modules():
            if isinstance(layer, _BatchNorm) and _synchronized(layer) is None:
                raise TypeError(
                    f"expected layers that are nothing but torch.nn's or normreg's BatchNorm, got "
                    f"{type(layer).__name__} at {name or '(the model itself)'!r}: put a "
                    f"normreg.SyncBatchNorm in its place before, or call this on the parts without it"
                )
        return _converted(module, process_group, {})


@leaf
class SyncBatchNormAct(_BatchNormAct, SyncBatchNorm):
    """`SyncBatchNorm` with an activation, and a residual before that, as in `BatchNormAct2d`.

    Args:
        num_features, ...: those of `SyncBatchNorm`, whose state_dict this has as well.
        act, negative_slope: those of `normreg.functional.batch_norm_act`.

    One that `convert_sync_batchnorm` made of timm's BatchNormAct2d has that layer's modules `drop` and `act`.

    Equivalent::

        y = act(sync_batch_norm(x) + residual)    # the residual is optional
    """

    @instead(**OF_ACTIVATIONS)
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        act: str | None = "relu",
        negative_slope: float = 0.01,
        bias: bool = True,
    ) -> None:
        arguments = num_features, eps, momentum, affine, track_running_stats, device, dtype
        super().__init__(*arguments, act=act, negative_slope=negative_slope, bias=bias)
        self.process_group = process_group

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if "act" not in self._modules:
            return super().forward(input, residual)
        drop: Any = self._modules["drop"]
        act: Any = self._modules["act"]
        y = drop(SyncBatchNorm.forward(self, input))
        return act(y if residual is None else y + residual)


def convert_sync_batchnorm(model: torch.nn.Module, process_group: Any = None) -> torch.nn.Module:
    """The same as `SyncBatchNorm.convert_sync_batchnorm`."""
    return SyncBatchNorm.convert_sync_batchnorm(model, process_group)


_FORWARDS = (_BatchNorm.forward, torch.nn.SyncBatchNorm.forward, _BatchNormForward.forward)
# import paths of classes that compute act(drop(batch_norm(x))) with modules of these names
_WITH_DROP_AND_ACT = {"timm.layers.norm_act.BatchNormAct2d", "timm.layers.norm_act.SyncBatchNormAct"}


def _synchronized(layer: torch.nn.Module) -> type[SyncBatchNorm] | None:
    """The class that a BatchNorm layer becomes, or None if it cannot be converted."""
    if isinstance(layer, _BatchNormAct):
        return SyncBatchNormAct
    modules = layer._modules
    if isinstance(layer, LazyModuleMixin) or "forward" in vars(layer) or "parametrizations" in modules:
        return None
    if _computes_as(type(layer)) in _WITH_DROP_AND_ACT and {"drop", "act"} <= modules.keys():
        return SyncBatchNormAct
    return SyncBatchNorm if type(layer).forward in _FORWARDS else None


def _computes_as(cls: type) -> str:
    """The import path of the class whose forward this one has, or had before `replace`."""
    owner = next(each for each in cls.__mro__ if "forward" in vars(each))
    owner = vars(owner).get("original", owner)
    return f"{owner.__module__}.{owner.__qualname__}"


def _converted(
    module: torch.nn.Module, process_group: Any, done: dict[Any, torch.nn.Module]
) -> torch.nn.Module:
    if module in done:  # tied
        return done[module]
    converted = module
    cls = _synchronized(module) if isinstance(module, _BatchNorm) else None
    if cls is not None:
        cls = frozen(cls) if isinstance(module, Frozen) else cls
        converted = cls.__new__(cls)
        for name, value in vars(module).items():
            vars(converted)[name] = value.copy() if isinstance(value, (dict, set)) else value
        vars(converted)["process_group"] = process_group
    done[module] = converted
    for name, child in module._modules.items():
        if child is not None:
            converted._modules[name] = _converted(child, process_group, done)
    return converted

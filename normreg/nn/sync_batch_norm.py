import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from normreg import functional
from normreg.functional.synchronized import check_device, check_ranks_agree, group_of
from normreg.nn.batch_norm import _BatchNormForward, call_batch_norm
from normreg.nn.batch_norm_act import _BatchNormAct


class SyncBatchNorm(_BatchNormForward, _BatchNorm):
    """`torch.nn.SyncBatchNorm` on `normreg.functional.sync_batch_norm`, on CPUs as well.

    Args:
        num_features, ...: those of torch's.
        process_group: whose batches are normalised together; None for all ranks.

    In evaluation, with one rank and without torch.distributed it is BatchNorm. At the first batch, and at the
    first of another dtype, the ranks compare their numbers of channels and dtypes, and where these differ
    every rank raises ValueError. That waits for the device, no other batch does; torch.compile leaves it out.
    Raises RuntimeError where the layer has a process group but torch.distributed is not initialized.

    No subclass of `torch.nn.SyncBatchNorm`, which DistributedDataParallel refuses on CPUs.
    """

    process_group = None
    _agreed = None  # what the ranks have last found to be the same

    def __init__(
        self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True,
        process_group=None, device=None, dtype=None, **options,
    ):  # fmt: skip
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **options)
        self.process_group = process_group

    _check_input_dim = torch.nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = torch.nn.SyncBatchNorm._check_non_zero_input_channels

    def _normalized(self, input, of_one_rank, **options):
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        if not self.training or self._is_alone():
            return call_batch_norm(self, of_one_rank, input, **options)
        group = group_of(self.process_group)
        if not torch.compiler.is_compiling():
            self._agree(input, group)
        return call_batch_norm(self, self._of_all_ranks, input, process_group=group, **options)

    def _is_alone(self):
        distributed = torch.distributed
        if self.process_group is None and not (distributed.is_available() and distributed.is_initialized()):
            return True
        return distributed.get_world_size(group_of(self.process_group)) == 1

    def _agree(self, input, group):
        found = group.group_name, input.shape[1], input.dtype
        if found == self._agreed or (input.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        check_device(input, group)
        check_ranks_agree(input, group)
        self._agreed = found

    @staticmethod
    def _of_all_ranks(input, *tensors, training, **options):
        return functional.sync_batch_norm(input, *tensors, **options)

    @classmethod
    def convert_sync_batchnorm(cls, module, process_group=None):
        """`torch.nn.SyncBatchNorm.convert_sync_batchnorm`, whose layers are normreg's and keep activations.

        Args:
            module: a module; BatchNorm layers in it, torch's and normreg's, are replaced in place.
            process_group: whose batches are normalised together; None for all ranks.

        Returns the module, or what replaces it where it is a BatchNorm itself: SyncBatchNorm of BatchNorm1d,
        2d, 3d and SyncBatchNorm, SyncBatchNormAct of BatchNormAct1d, 2d, 3d. A new layer has the parameters,
        buffers, hooks and flags of the old one. Raises TypeError for a lazy or parametrized layer, and for a
        class derived from BatchNorm with a forward of its own, before anything is replaced.
        """
        for name, layer in module.named_modules():
            if isinstance(layer, _BatchNorm) and _synchronized(layer) is None:
                raise TypeError(
                    f"expected layers that are nothing but torch.nn's or normreg's BatchNorm, got "
                    f"{type(layer).__name__} at {name!r}: convert it yourself before, or leave it out"
                )
        return _converted(module, process_group, {})


class SyncBatchNormAct(_BatchNormAct, SyncBatchNorm):
    """`SyncBatchNorm` with an activation, and a residual before that, as in `BatchNormAct2d`.

    Args:
        num_features, ...: those of `SyncBatchNorm`, whose state_dict this has as well.
        act, negative_slope: those of `normreg.functional.batch_norm_act`.

    Equivalent::

        y = act(sync_batch_norm(x) + residual)    # the residual is optional
    """


def convert_sync_batchnorm(model, process_group=None):
    """`SyncBatchNorm.convert_sync_batchnorm`."""
    return SyncBatchNorm.convert_sync_batchnorm(model, process_group)


_FORWARDS = (_BatchNorm.forward, torch.nn.SyncBatchNorm.forward, _BatchNormForward.forward)


def _synchronized(layer):
    """The class that a BatchNorm layer becomes, or None."""
    if isinstance(layer, _BatchNormAct):
        return SyncBatchNormAct
    if (
        type(layer).forward not in _FORWARDS
        or "forward" in vars(layer)
        or "parametrizations" in layer._modules
    ):
        return None
    return None if isinstance(layer, LazyModuleMixin) else SyncBatchNorm


def _converted(module, process_group, done):
    if module in done:  # tied
        return done[module]
    converted = module
    if isinstance(module, _BatchNorm):
        cls = _synchronized(module)
        converted = cls.__new__(cls)
        for name, value in vars(module).items():
            vars(converted)[name] = value.copy() if isinstance(value, (dict, set)) else value
        converted.process_group = process_group
    done[module] = converted
    for name, child in module._modules.items():
        if child is not None:
            converted._modules[name] = _converted(child, process_group, done)
    return converted

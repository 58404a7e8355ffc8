import torch

from normreg import functional
from normreg.nn.batch_norm import _BatchNormForward
from normreg.ops.activations import check_activation


class _BatchNormAct(_BatchNormForward):
    """torch.nn's BatchNorm with an activation, and a residual before that, in the same launches.

    Args:
        num_features, ...: those of torch.nn's BatchNorm, whose state_dict this has as well.
        act, negative_slope: those of `normreg.functional.batch_norm_act`.

    Equivalent::

        y = act(batch_norm(x) + residual)    # the residual is optional

    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` takes it for a BatchNorm without an activation;
    `normreg.convert_sync_batchnorm` does not.
    """

    def __init__(self, *arguments, act="relu", negative_slope=0.01, **options):
        check_activation(act)
        super().__init__(*arguments, **options)
        self.act, self.negative_slope = act, negative_slope

    def forward(self, input, residual=None):
        if isinstance(input, torch.fx.Proxy):
            return self._traced(input) if residual is None else self._traced(input, residual)
        options = dict(act=self.act, negative_slope=self.negative_slope, residual=residual)
        return self._normalized(input, functional.batch_norm_act, **options)

    def extra_repr(self):
        slope = f", negative_slope={self.negative_slope}" if self.act == "leaky_relu" else ""
        return f"{super().extra_repr()}, act={self.act!r}{slope}"


class BatchNormAct1d(_BatchNormAct, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, residual and activation: `normreg.functional.batch_norm_act`."""


class BatchNormAct2d(_BatchNormAct, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, residual and activation: `normreg.functional.batch_norm_act`."""


class BatchNormAct3d(_BatchNormAct, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, residual and activation: `normreg.functional.batch_norm_act`."""

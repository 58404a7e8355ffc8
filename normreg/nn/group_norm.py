import torch
from torch import Tensor
from torch.types import Device

from normreg import functional
from normreg.functional.tracing import leaf
from normreg.nn.arguments import (
    OF_ACTIVATIONS,
    OutDtype,
    activation_repr,
    bias_option,
    check_eps,
    instead,
)
from normreg.ops.activations import check_activation


@leaf
class GroupNorm(OutDtype, torch.nn.GroupNorm):
    """`torch.nn.GroupNorm` on `normreg.functional.group_norm`, whose out_dtype it takes as well.

    bias: where this torch has it.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, **bias_option(bias))
        self._set_out_dtype(out_dtype)

    def forward(self, input: Tensor) -> Tensor:
        own = self._parameters
        try:  # without the calls of __getattr__
            weight, bias = own["weight"], own["bias"]
        except KeyError:
            weight, bias = self.weight, self.bias
        return functional.group_norm(input, self.num_groups, weight, bias, self.eps, out_dtype=self.out_dtype)


@leaf
class GroupNormAct(OutDtype, torch.nn.GroupNorm):
    """`torch.nn.GroupNorm` with an activation, in the same launches: `normreg.functional.group_norm_act`.

    Args:
        num_groups, ..., dtype: those of torch.nn's GroupNorm, whose state_dict this has as well. timm's
            layer of this name takes num_channels first.
        act, negative_slope, out_dtype: those of `normreg.functional.group_norm_act`.

    Raises ValueError for another act, and for a num_groups that does not divide num_channels, as where both
    are in timm's order; TypeError for an eps that is not a number, such as an activation that is not passed
    by name.

    Equivalent::

        y = act(group_norm(x))
    """

    act: str | None
    negative_slope: float

    @instead(
        **OF_ACTIVATIONS,
        group_size="pass num_groups, which is num_channels divided by it",
        act_kwargs="pass negative_slope= for leaky_relu, whose other options are the activation's own",
        drop_layer="put the layer behind this one, with act=None, and the activation behind that",
    )
    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        act: str | None = "silu",
        negative_slope: float = 0.01,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        check_activation(act, negative_slope)
        check_eps(self, "third", eps, num_groups, num_channels)
        if num_groups == 0 or num_channels % num_groups:
            swapped = num_groups > num_channels > 0 and num_groups % num_channels == 0
            raise ValueError(
                f"expected num_groups, the first argument, to divide num_channels, the second, got "
                f"{type(self).__name__}({num_groups}, {num_channels}): pass "
                + (f"them the other way round, {num_channels} groups" if swapped else "one that does")
            )
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        self.act, self.negative_slope = act, negative_slope
        self._set_out_dtype(out_dtype)

    def forward(self, input: Tensor) -> Tensor:
        return functional.group_norm_act(
            input,
            self.num_groups,
            self.weight,
            self.bias,
            self.eps,
            act=self.act,
            negative_slope=self.negative_slope,
            out_dtype=self.out_dtype,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {activation_repr(self.act, self.negative_slope)}"

import torch
from torch import Tensor
from torch.types import Device

from normreg import functional
from normreg.functional.tracing import leaf
from normreg.nn.arguments import instead, probability
from normreg.ops.activations import check_activation


@leaf
class DropoutAdd(torch.nn.Module):
    """`normreg.functional.dropout_add`: the end of a residual branch.

    Args:
        p: probability that an element becomes zero, in [0, 1].

    Equivalent::

        z = residual + dropout(x)
    """

    @instead(drop_prob="pass p={}", dropout="pass p={}", inplace="leave it out, the input is never changed")
    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = probability("p", p)

    def forward(self, input: Tensor, residual: Tensor, row_scale: Tensor | None = None) -> Tensor:
        return functional.dropout_add(input, residual, self.p, self.training, row_scale=row_scale)

    def extra_repr(self) -> str:
        return f"p={self.p}"


@leaf
class DropPathAdd(torch.nn.Module):
    """`normreg.functional.drop_path_add`: the end of a residual branch with stochastic depth.

    Args:
        drop_prob: probability that a sample becomes zero, in [0, 1].
        scale_by_keep: scale the samples that are kept by 1 / (1 - drop_prob).

    Equivalent::

        z = residual + drop_path(x)
    """

    @instead(p="pass drop_prob={}", inplace="leave it out, the input is never changed")
    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = probability("drop_prob", drop_prob), scale_by_keep

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return functional.drop_path_add(x, residual, self.drop_prob, self.training, self.scale_by_keep)

    def extra_repr(self) -> str:
        return f"drop_prob={round(self.drop_prob, 3):0.3f}"


@leaf
class BiasActDropout(torch.nn.Module):
    """`normreg.functional.bias_act_dropout`, behind a linear layer without a bias.

    Args:
        num_features: length of the bias, which is 0 at first.
        act, negative_slope: those of `normreg.functional.bias_act_dropout`.
        p: probability that an element becomes zero, in [0, 1].

    Equivalent::

        y = dropout(act(x + bias))
    """

    @instead(
        bias="leave it out, or call normreg.functional.bias_act_dropout, which takes None for no bias",
        dropout="pass p={}",
        drop_prob="pass p={}",
        activation="pass act=, the name of the activation",
        inplace="leave it out, the input is never changed",
    )
    def __init__(
        self,
        num_features: int,
        *,
        act: str | None = "gelu",
        p: float = 0.5,
        negative_slope: float = 0.01,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_activation(act, negative_slope)
        super().__init__()
        self.num_features, self.act, self.negative_slope = num_features, act, negative_slope
        self.p = probability("p", p)
        self.bias = torch.nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        options = self.act, self.p, self.training
        return functional.bias_act_dropout(input, self.bias, *options, negative_slope=self.negative_slope)

    def extra_repr(self) -> str:
        return f"{self.num_features}, act={self.act!r}, p={self.p}"

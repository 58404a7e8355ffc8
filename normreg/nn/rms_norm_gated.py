import torch
from torch import Tensor
from torch.types import Device

from normreg import functional
from normreg.functional.gated_norms import check_gate, check_group_size
from normreg.functional.tracing import leaf
from normreg.nn.arguments import OutDtype, instead


@leaf
class RMSNormGated(OutDtype, torch.nn.RMSNorm):
    """RMSNorm with a gate: `normreg.functional.rms_norm_gated`.

    The state_dict is that of mamba_ssm's RMSNormGated and of flash-linear-attention's FusedRMSNormGated.

    Args:
        hidden_size: C, the size of the last dimension: Mamba2's inner size, or that of a head.
        eps: added to the mean square.
        elementwise_affine: whether the layer has a weight of shape (C,).
        group_size, norm_before_gate, act, out_dtype: those of `normreg.functional.rms_norm_gated`.

    Raises ValueError for a group_size that does not divide hidden_size, and for another act.

    `forward` takes the input and its gate, or None for none.

    Equivalent::

        y = rms_norm(x) * silu(gate)    # or, where the norm is not before the gate:
        y = rms_norm(x * silu(gate))
    """

    @instead(
        activation="pass act=, silu for swish",
        normalized_shape="pass hidden_size, the size of the last dimension",
        dim="pass hidden_size={}",
        d="pass hidden_size={}",
        n_groups="pass group_size=hidden_size // {}",
        bias="leave it out, or call normreg.functional.rms_norm_gated, which takes one",
    )
    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        *,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        act: str = "silu",
        out_dtype: torch.dtype | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_gate(act)
        if group_size is not None:
            check_group_size(group_size, hidden_size)
        if isinstance(eps, bool):
            raise TypeError(
                f"expected eps, the second argument, to be a number, got {eps}: pass elementwise_affine by "
                f"name"
            )
        super().__init__(hidden_size, eps, elementwise_affine, device, dtype)
        self.group_size, self.norm_before_gate, self.act = group_size, norm_before_gate, act
        self._set_out_dtype(out_dtype)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return functional.rms_norm_gated(
            x,
            gate,
            self.weight,
            None,
            self.eps,
            group_size=self.group_size,
            norm_before_gate=self.norm_before_gate,
            act=self.act,
            out_dtype=self.out_dtype,
        )

    def extra_repr(self) -> str:
        words = [super().extra_repr(), f"act={self.act!r}"]
        if self.group_size is not None:
            words.append(f"group_size={self.group_size}")
        if not self.norm_before_gate:
            words.append("norm_before_gate=False")
        return ", ".join(words)

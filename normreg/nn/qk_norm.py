import torch
from torch import Tensor
from torch.types import Device

from normreg import functional
from normreg.functional.qk_norms import check_norm
from normreg.functional.tracing import leaf
from normreg.nn.arguments import OutDtype, instead
from normreg.nn.layer_norm import LayerNorm
from normreg.nn.rms_norm import RMSNorm


@leaf
class QKNorm(OutDtype, torch.nn.Module):
    """`normreg.functional.qk_norm`: the norms of the heads of queries and keys, before attention.

    Its norms `q_norm` and `k_norm` hold the parameters, so that the state_dict has the names that attention
    layers of transformers have: q_norm.weight and k_norm.weight.

    Args:
        head_dim: D, the size of a head.
        eps: added to the mean square or variance; None for the norm's default.
        elementwise_affine: whether the norms have weights.
        norm: "rms_norm" or "layer_norm".
        bias: whether they have biases, which only "layer_norm" can have.
        interleaved, out_dtype: those of `normreg.functional.qk_norm`.

    `forward` takes q and k, (*, D), and rotary, (cos, sin) of rotary embedding, or None; it returns both
    normalised.
    """

    @instead(
        normalized_shape="pass head_dim, the size of a head",
        dim="pass head_dim={}",
        affine="pass elementwise_affine={}",
    )
    def __init__(
        self,
        head_dim: int,
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        norm: str = "rms_norm",
        bias: bool = False,
        interleaved: bool = False,
        out_dtype: torch.dtype | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_norm(norm, bias)
        self.norm, self.interleaved = norm, interleaved
        self._set_out_dtype(out_dtype)

        def of_heads() -> torch.nn.RMSNorm | torch.nn.LayerNorm:
            if norm == "rms_norm":
                return RMSNorm(head_dim, eps, elementwise_affine, device, dtype)
            return LayerNorm(head_dim, 1e-5 if eps is None else eps, elementwise_affine, bias, device, dtype)

        self.q_norm, self.k_norm = of_heads(), of_heads()

    def forward(
        self, q: Tensor, k: Tensor, rotary: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        of_q, of_k = self.q_norm, self.k_norm
        return functional.qk_norm(
            q,
            k,
            of_q.weight,
            of_k.weight,
            of_q.eps,
            q_bias=getattr(of_q, "bias", None),
            k_bias=getattr(of_k, "bias", None),
            norm=self.norm,
            rotary=rotary,
            interleaved=self.interleaved,
            out_dtype=self.out_dtype,
        )

    def extra_repr(self) -> str:
        return f"norm={self.norm!r}" + ", interleaved=True" * self.interleaved + super().extra_repr()

import torch
from torch import Tensor

from normreg import functional
from normreg.functional.tracing import leaf
from normreg.nn.arguments import instead, probability


@leaf
class Dropout(torch.nn.Dropout):
    """`torch.nn.Dropout` on `normreg.functional.dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout(input, self.p, self.training, self.inplace)


@leaf
class Dropout1d(torch.nn.Dropout1d):
    """`torch.nn.Dropout1d` on `normreg.functional.dropout1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout1d(input, self.p, self.training, self.inplace)


@leaf
class Dropout2d(torch.nn.Dropout2d):
    """`torch.nn.Dropout2d` on `normreg.functional.dropout2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout2d(input, self.p, self.training, self.inplace)


@leaf
class Dropout3d(torch.nn.Dropout3d):
    """`torch.nn.Dropout3d` on `normreg.functional.dropout3d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout3d(input, self.p, self.training, self.inplace)


# torch's layers of these two store `inplace` but never change their input, which a model may use afterwards
@leaf
class AlphaDropout(torch.nn.AlphaDropout):
    """`torch.nn.AlphaDropout` on `normreg.functional.alpha_dropout`. Like torch's, never in place."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.alpha_dropout(input, self.p, self.training)


@leaf
class FeatureAlphaDropout(torch.nn.FeatureAlphaDropout):
    """`torch.nn.FeatureAlphaDropout` on `normreg.functional.feature_alpha_dropout`; never in place."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.feature_alpha_dropout(input, self.p, self.training)


@leaf
class DropPath(torch.nn.Module):
    """Stochastic depth on `normreg.functional.drop_path`, with timm's constructor, attributes and repr.

    Args:
        drop_prob: probability that a sample becomes zero, in [0, 1].
        scale_by_keep: scale the samples that are kept by 1 / (1 - drop_prob).

    Raises ValueError for another drop_prob.
    """

    @instead(p="pass drop_prob={}", inplace="leave it out, the input is never changed")
    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob = probability("drop_prob", drop_prob)
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        return functional.drop_path(x, self.drop_prob, self.training, self.scale_by_keep)

    def extra_repr(self) -> str:
        return f"drop_prob={round(self.drop_prob, 3):0.3f}"

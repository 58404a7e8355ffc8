"""The transformer block of `networks` with normreg's fusions in place of its layers."""

import torch.nn.functional as F

import normreg
from bench.perf.models import networks
from normreg import functional


class FusedBlock(networks.Block):
    """A block of the same parameters and results; sum, norm, activation and dropout share launches."""

    def forward(self, x):
        if self.norm_first:
            y, z = self.dropout_add_norm2(self.attention(self.norm1(x)), x, prenorm=True)
            return functional.dropout_add(self.feed_forward(y), z, self.p, self.training)
        options = dict(p=self.p, training=self.training, eps=self.norm1.eps)
        norm1 = self.norm1.normalized_shape, self.norm1.weight, self.norm1.bias
        y = functional.dropout_add_layer_norm(self.attention(x), x, *norm1, **options)
        return self.dropout_add_norm2(self.feed_forward(y), y)

    @property
    def p(self):
        return getattr(self.dropout1, "p", 0.0)

    def dropout_add_norm2(self, branch, residual, **options):
        norm = self.norm2
        parameters = norm.normalized_shape, norm.weight, norm.bias, self.p, self.training, norm.eps
        return functional.dropout_add_layer_norm(branch, residual, *parameters, **options)

    def feed_forward(self, x):
        wider, gelu, narrower = self.mlp
        act = "gelu_tanh" if gelu.approximate == "tanh" else "gelu"
        return narrower(functional.bias_act_dropout(F.linear(x, wider.weight), wider.bias, act, 0.0))


def fuse(network):
    """Replaces the layers by normreg's and fuses the blocks; returns the number of blocks."""
    normreg.replace(network)
    blocks = [module for module in network.modules() if type(module) is networks.Block]
    for block in blocks:
        block.__class__ = FusedBlock
    return len(blocks)

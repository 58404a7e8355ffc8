"""Builds a diffusion transformer's block of normreg's fused layers, trains it,
and compares it with the same in torch's operators.

The block is DiT's, with adaLN-Zero, norms of queries and keys, and dropout.
AdaLayerNorm, QKNorm and DropoutAdd compute in 4 calls what is 14 of torch's
operators. Prints which path each call takes and how the loss falls.

    python diffusion_block.py                    # of DiT-XL's width, for a GPU
    python diffusion_block.py --tiny             # seconds on a CPU
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

import normreg

plain = argparse.RawDescriptionHelpFormatter
parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
parser.add_argument("--tiny", action="store_true", help="a small block for a CPU")
options = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"
sizes = (32, 4, 4, 4, 20) if options.tiny else (1152, 16, 256, 32, 200)
width, heads, tokens, batch, steps = sizes


class Block(nn.Module):
    def __init__(self, width, heads, p=0.1):
        super().__init__()
        self.norm1 = normreg.AdaLayerNorm(width)
        self.norm2 = normreg.AdaLayerNorm(width, prenorm=True)  # returns the sum, too
        self.qk_norm = normreg.QKNorm(width // heads, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        wider, narrower = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(wider, nn.GELU("tanh"), narrower)
        self.dropout_add = normreg.DropoutAdd(p)
        self.modulation = nn.Linear(width, 6 * width)
        for parameter in self.modulation.parameters():
            nn.init.zeros_(parameter)  # adaLN-Zero
        self.heads = heads

    def forward(self, x, condition):
        """x: (N, T, C), condition: (N, C)."""
        modulation = self.modulation(F.silu(condition)).chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        qkv = self.qkv(self.norm1(x, scale1, shift1))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).unbind(2)
        y = attention(*self.qk_norm(q, k), v)
        y, x = self.norm2(self.out(y), scale2, shift2, residual=x, gate=gate1)
        return self.dropout_add(gate2[:, None] * self.mlp(y), x)


def attention(q, k, v):
    q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def in_torch(block, x, condition):
    """What the block computes, in torch's operators."""

    def norm(x, scale, shift):
        y = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return y * (1 + scale[:, None]) + shift[:, None]

    modulation = block.modulation(F.silu(condition)).chunk(6, dim=-1)
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation
    qkv = block.qkv(norm(x, scale1, shift1))
    q, k, v = qkv.unflatten(-1, (3, block.heads, -1)).unbind(2)
    q = F.rms_norm(q, q.shape[-1:], block.qk_norm.q_norm.weight, 1e-6)
    k = F.rms_norm(k, k.shape[-1:], block.qk_norm.k_norm.weight, 1e-6)
    x = x + gate1[:, None] * block.out(attention(q, k, v))
    y = gate2[:, None] * block.mlp(norm(x, scale2, shift2))
    return x + F.dropout(y, block.dropout_add.p, block.training)


torch.manual_seed(0)
block = Block(width, heads).to(device)
condition = torch.randn(batch, width, device=device)
# a sample is what its condition says
clean = condition[:, None].tanh().expand(batch, tokens, width)
print(normreg.explain(block, clean, condition))

optimizer = torch.optim.AdamW(normreg.parameter_groups(block, 0.01), lr=0.3 / width)
for step in range(steps):  # to take the noise out
    loss = F.mse_loss(block(clean + torch.randn_like(clean), condition), clean)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step in (0, steps - 1):
        print(f"loss of step {step + 1}: {loss.item():.4f}")

block.eval()
difference = (block(clean, condition) - in_torch(block, clean, condition)).abs().max()
print(f"largest difference from torch's operators: {difference.item():.1e}")

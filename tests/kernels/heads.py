"""Queries and keys as views of a projection, and what tests of their norms give beside them."""

import torch

B, T, H, G = 2, 9, 4, 2  # heads of keys: G


def packed(device, D, dtype):
    """The projection of queries, keys and values that both are slices of."""
    return torch.randn(B, T, (H + 2 * G) * D, device=device, dtype=dtype)


def split(projection, D):
    q, k, _ = projection.split((H * D, G * D, G * D), -1)
    return q.view(B, T, H, D), k.view(B, T, G, D)


def of_three(projection, D):
    """(B, T, 4, G, D), of which values take two."""
    q, k, *_ = projection.view(B, T, 4, G, D).unbind(2)
    return q, k


def interleaved(projection, D):
    q, k, *_ = projection.view(B, T, G, 4, D).unbind(3)
    return q, k


def in_groups(projection, D):
    """Queries of each group of heads beside their key."""
    heads = projection.view(B, T, G, 4, D)
    return heads[..., :2, :], heads[..., 2, :]


def transposed(views):
    return lambda projection, D: tuple(x.transpose(1, 2) for x in views(projection, D))


def apart(projection, D):
    """Queries without gaps, keys an odd stride apart."""
    q, k = split(projection, D)
    return q.contiguous(), torch.nn.functional.pad(k, (0, 1))[..., :-1]


VIEWS = {
    "split": split,
    "of three": of_three,
    "interleaved": interleaved,
    "in groups": in_groups,
    "split, transposed": transposed(split),
    "of three, transposed": transposed(of_three),
    "contiguous": lambda projection, D: [x.contiguous() for x in split(projection, D)],
    "dense, transposed": lambda projection, D: [x.contiguous().transpose(1, 2) for x in split(projection, D)],
    "elements apart": lambda projection, D: [x.mT.contiguous().mT for x in split(projection, D)],
    "another vector": apart,
    "of (B, H, T, D)": lambda projection, D: [x.transpose(1, 2).contiguous() for x in split(projection, D)],
    "one key": lambda projection, D: [x.transpose(1, 2)[:, :1] for x in split(projection, D)],
    "repeated": lambda projection, D: [x[:, :, :1].expand(-1, -1, 3, -1) for x in split(projection, D)],
    "without the first token": lambda projection, D: [x[:, 1:] for x in split(projection, D)],
    "one token": lambda projection, D: [x[:1, :1] for x in split(projection, D)],
}


def parameters(device, D, dtype, norm):
    names = ("q_weight", "k_weight", "q_bias", "k_bias")[: 4 if norm == "layer_norm" else 2]
    return {name: torch.randn(D, device=device, dtype=dtype, requires_grad=True) for name in names}


def joined(results):
    """Both results in one row, so that one incoming gradient reaches both."""
    return torch.cat([x.flatten() for x in results])

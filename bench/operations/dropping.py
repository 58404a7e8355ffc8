"""What formulas drop by: torch's dropout, stochastic depth, or a mask that is given."""

import functools

import torch

OF_SELU = -1.0507009873554805 * 1.6732632423543772  # what alpha dropout drops to


def dropped(keep):
    """What a formula takes for dropout to drop by this mask."""
    return lambda x, p, training=True: torch.where(keep, x, 0) / (1 - p)


def scaled_branch(branch, row_scale, layer_scale):
    branch = branch if row_scale is None else branch * row_scale.view(-1, *(1,) * (branch.dim() - 1))
    return branch if layer_scale is None else branch * layer_scale


def drop_path(x, drop_prob=0.0, training=False, scale_by_keep=True):
    """What timm computes."""
    if drop_prob == 0.0 or not training:
        return x
    noise = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - drop_prob)
    if drop_prob < 1 and scale_by_keep:
        noise.div_(1 - drop_prob)
    return x * noise


def alpha_dropout(x, p, training, keep):
    a = ((1 - p) * (1 + p * OF_SELU**2)) ** -0.5
    return a * torch.where(keep, x, OF_SELU) - a * p * OF_SELU


def dropout_under_mask(name, keep):
    return functools.partial(alpha_dropout, keep=keep) if name == "alpha_dropout" else dropped(keep)

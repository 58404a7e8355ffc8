"""torch.nn.functional, and what normreg's functions that it has not compute, in torch's operators."""

import torch
import torch.nn.functional as F


def __getattr__(name):
    return getattr(F, name)


# {name that `act` takes: torch's function}; the slope of leaky_relu is not its default
ACTIVATIONS = {
    None: lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.3),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "hardswish": F.hardswish,
}


def drop_path(x, drop_prob=0.0, training=False, scale_by_keep=True):
    """What timm computes."""
    if drop_prob == 0.0 or not training:
        return x
    noise = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - drop_prob)
    if drop_prob < 1 and scale_by_keep:
        noise.div_(1 - drop_prob)
    return x * noise


def layer_norm_channels(x, weight=None, bias=None, eps=1e-6):
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2], weight, bias, eps).movedim(-1, 1)


def batch_norm_act(
    x, mean, var, weight=None, bias=None, training=False, *, act, residual=None, negative_slope=0.3
):
    assert negative_slope == 0.3, "ACTIVATIONS has no other"
    y = F.batch_norm(x, mean, var, weight, bias, training)
    return ACTIVATIONS[act](y if residual is None else y + residual)


def _branch(x, p, row_scale, layer_scale):
    branch = F.dropout(x, p)
    branch = branch if row_scale is None else branch * row_scale.view(-1, *(1,) * (x.dim() - 1))
    return branch if layer_scale is None else branch * layer_scale


def dropout_add(x, residual, p=0.5, *, row_scale=None, layer_scale=None):
    return residual + _branch(x, p, row_scale, layer_scale)


def drop_path_add(x, residual, drop_prob, training):
    return residual + drop_path(x, drop_prob, training)


def dropout_add_layer_norm(
    x, residual, shape, weight=None, bias=None, *, p, prenorm=False, row_scale=None, layer_scale=None
):
    z = _branch(x, p, row_scale, layer_scale) + residual
    y = F.layer_norm(z, shape, weight, bias)
    return (y, z) if prenorm else y


def dropout_add_rms_norm(
    x, residual, shape, weight=None, *, p, prenorm=False, row_scale=None, layer_scale=None
):
    z = _branch(x, p, row_scale, layer_scale) + residual
    y = F.rms_norm(z, shape, weight)
    return (y, z) if prenorm else y


def bias_act_dropout(x, bias=None, act="gelu", p=0.5):
    return F.dropout(ACTIVATIONS[act](x if bias is None else x + bias), p)


def l2_penalty(parameters, weight_decay):
    wide = [w.to(torch.promote_types(w.dtype, torch.float32)) for w in parameters]
    return weight_decay / 2 * sum(w.square().sum() for w in wide)

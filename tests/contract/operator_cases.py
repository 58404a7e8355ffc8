"""Calls of operators that were chosen by hand: an operator's name, and its arguments on a device."""

import torch

import normreg  # noqa: F401

OPERATORS = torch.ops.normreg


def images(device, dtype=torch.float32, memory_format=torch.contiguous_format):
    return torch.randn(3, 4, 2, 5, device=device, dtype=dtype).contiguous(memory_format=memory_format)


def rows(device, dtype=torch.float32):
    return torch.randn(6, 8, device=device, dtype=dtype)


def heads(device, number=4, dtype=torch.float32):
    return torch.randn(2, 3, number, 8, device=device, dtype=dtype)


def values(device, *shape, dtype=torch.float32):
    return torch.rand(shape, device=device, dtype=dtype) + 0.5


def running(device):
    return values(device, 4), values(device, 4)


def statistics(device, *sizes):
    return values(device, *sizes, 3)


def seed(device):
    return torch.tensor(5, device=device)


HALF, LAST = torch.bfloat16, torch.channels_last
FLOAT, DOUBLE = torch.float32, torch.float64
CASES = {
    "layer_norm": (
        "layer_norm", lambda d: (rows(d), values(d, 8), values(d, 8), (8,), 1e-5, FLOAT, True)),
    "layer_norm of bfloat16, two dimensions, float32 weight": (
        "layer_norm", lambda d: (images(d, HALF), values(d, 2, 5), None, (2, 5), 1e-5, HALF, True)),
    "layer_norm without weight, in float32": (
        "layer_norm", lambda d: (images(d, HALF, LAST), None, values(d, 5), (5,), 1e-5, FLOAT, True)),
    "layer_norm without statistics": (
        "layer_norm", lambda d: (rows(d), None, None, (8,), 1e-5, FLOAT, False)),
    "layer_norm_backward": ("layer_norm_backward", lambda d: (
        rows(d), rows(d), values(d, 8), statistics(d, 6), (8,), FLOAT, [True, True, True])),
    "layer_norm_backward of dx": ("layer_norm_backward", lambda d: (
        rows(d, HALF)[:1].expand(6, 8), rows(d, HALF), None, statistics(d, 6), (8,), HALF,
        [True, False, False])),
    "layer_norm_backward of parameters": ("layer_norm_backward", lambda d: (
        images(d), images(d, memory_format=LAST), None, statistics(d, 12), (2, 5), FLOAT,
        [False, True, True])),
    "rms_norm": ("rms_norm", lambda d: (rows(d), values(d, 8), (8,), 1e-5, FLOAT, True)),
    "rms_norm of float64": (
        "rms_norm", lambda d: (images(d, DOUBLE, LAST), None, (2, 5), 1e-5, DOUBLE, True)),
    "rms_norm without statistics": (
        "rms_norm", lambda d: (rows(d, HALF), values(d, 8), (8,), 1e-5, HALF, False)),
    "layer_norm_float8": (
        "layer_norm_float8", lambda d: (rows(d, HALF), values(d, 8), values(d, 8), None, (8,), True, 1e-5)),
    "layer_norm_float8 of a slice with a scale a row, not centred": ("layer_norm_float8", lambda d: (
        images(d)[..., 1:], values(d, 2, 4), None, values(d, 3, 4, 1, 1), (2, 4), False, 1e-5)),
    "rms_norm_backward": ("rms_norm_backward", lambda d: (
        rows(d), rows(d), values(d, 8), values(d, 6, 1), (8,), FLOAT, [True, True])),
    "rms_norm_backward of weight": ("rms_norm_backward", lambda d: (
        rows(d), rows(d), None, values(d, 6, 1), (8,), FLOAT, [False, True])),
    "batch_norm": ("batch_norm", lambda d: (
        images(d), values(d, 4), values(d, 4), *running(d), torch.tensor(3, device=d), 0.1, 1e-5, True)),
    "batch_norm, cumulative, channels_last": ("batch_norm", lambda d: (
        images(d, FLOAT, LAST), values(d, 4), None, *running(d), torch.tensor(3, device=d), None, 1e-5,
        True)),
    "batch_norm of bfloat16 without parameters": (
        "batch_norm", lambda d: (images(d, HALF), None, None, None, None, None, 0.1, 1e-5, True)),
    "batch_norm without statistics": (
        "batch_norm", lambda d: (images(d), None, None, *running(d), None, 0.1, 1e-5, False)),
    "batch_norm_inference": ("batch_norm_inference", lambda d: (
        images(d), values(d, 4), values(d, 4), *running(d), 1e-5, True)),
    "batch_norm_inference, channels_last": (
        "batch_norm_inference", lambda d: (images(d, HALF, LAST), None, None, *running(d), 1e-5, False)),
    "batch_norm_backward": ("batch_norm_backward", lambda d: (
        images(d), images(d), values(d, 4), values(d, 4, dtype=DOUBLE), values(d, 4), 1e-5, FLOAT, True,
        [True, True, True])),
    "batch_norm_backward in evaluation, channels_last": ("batch_norm_backward", lambda d: (
        images(d), images(d, FLOAT, LAST), None, *running(d), 1e-5, FLOAT, False, [True, False, True])),
    "batch_norm_act": ("batch_norm_act", lambda d: (
        images(d), values(d, 4), values(d, 4), None, "relu", 0.0, 1e-5, *running(d),
        torch.tensor(3, device=d), 0.1, True)),
    "batch_norm_act of a residual, cumulative, channels_last": ("batch_norm_act", lambda d: (
        images(d, FLOAT, LAST), values(d, 4), values(d, 4), images(d), "leaky_relu", 0.2, 1e-5, *running(d),
        torch.tensor(3, device=d), None, True)),
    "batch_norm_act without statistics": ("batch_norm_act", lambda d: (
        images(d, HALF), None, None, images(d, HALF), "relu", 0.0, 1e-5, None, None, None, 0.1, False)),
    "batch_norm_act_inference": ("batch_norm_act_inference", lambda d: (
        images(d, FLOAT, LAST), values(d, 4), values(d, 4), images(d, FLOAT, LAST), "silu", 0.0, 1e-5,
        *running(d), True)),
    "batch_norm_act_inference of a sum": ("batch_norm_act_inference", lambda d: (
        images(d), None, None, images(d), None, 0.0, 1e-5, *running(d), True)),
    "batch_norm_act_backward": ("batch_norm_act_backward", lambda d: (
        images(d), images(d), values(d, 4), values(d, 4), None, None, values(d, 4, dtype=DOUBLE),
        values(d, 4), "gelu", 0.0, 1e-5, FLOAT, True, [True, True, True, False])),
    "batch_norm_act_backward of bits in evaluation": ("batch_norm_act_backward", lambda d: (
        images(d), images(d, FLOAT, LAST), None, None, None, torch.ones(30, 1, dtype=torch.int8, device=d),
        *running(d), "relu", 0.0, 1e-5, FLOAT, False, [True, False, True, True])),
    "layer_norm_channels": ("layer_norm_channels", lambda d: (
        images(d), values(d, 4), values(d, 4), 1e-5, FLOAT, True)),
    "layer_norm_channels of channels_last bfloat16, in float32": (
        "layer_norm_channels", lambda d: (images(d, HALF, LAST), values(d, 4), None, 1e-5, FLOAT, True)),
    "layer_norm_channels without statistics": (
        "layer_norm_channels", lambda d: (images(d, DOUBLE), None, None, 1e-5, DOUBLE, False)),
    "layer_norm_channels_backward": ("layer_norm_channels_backward", lambda d: (
        images(d), images(d), values(d, 4), statistics(d, 30), FLOAT, [True, True, True])),
    "layer_norm_channels_backward of bias": ("layer_norm_channels_backward", lambda d: (
        images(d, HALF, LAST), images(d, HALF), None, statistics(d, 30), FLOAT, [False, False, True])),
    "rms_norm_channels alone": ("rms_norm_channels", lambda d: (images(d), None, 1e-5, FLOAT, False)),
    "rms_norm_channels_backward": ("rms_norm_channels_backward", lambda d: (
        images(d, HALF, LAST), images(d, HALF), values(d, 4), values(d, 30, 1), FLOAT, [True, True])),
    "group_norm": ("group_norm", lambda d: (images(d), values(d, 4), values(d, 4), 2, 1e-5, FLOAT, True)),
    "group_norm of channels_last bfloat16, in float32": (
        "group_norm", lambda d: (images(d, HALF, LAST), values(d, 4), None, 4, 1e-5, FLOAT, True)),
    "group_norm without statistics": (
        "group_norm", lambda d: (images(d, DOUBLE), None, None, 1, 1e-5, DOUBLE, False)),
    "group_norm_backward": ("group_norm_backward", lambda d: (
        images(d), images(d), values(d, 4), statistics(d, 3, 2), 2, 1e-5, FLOAT, [True, True, True])),
    "group_norm_backward of weight": ("group_norm_backward", lambda d: (
        images(d, HALF, LAST), images(d, HALF), None, statistics(d, 3, 4), 4, 1e-5, FLOAT,
        [False, True, False])),
    "group_norm_act": ("group_norm_act", lambda d: (
        images(d), values(d, 4), values(d, 4), "silu", 0.0, 2, 1e-5, FLOAT, True)),
    "group_norm_act of channels_last bfloat16, in float32": ("group_norm_act", lambda d: (
        images(d, HALF, LAST), values(d, 4), None, "leaky_relu", 0.2, 4, 1e-5, FLOAT, True)),
    "group_norm_act without statistics": ("group_norm_act", lambda d: (
        images(d, DOUBLE), None, None, "relu", 0.0, 1, 1e-5, DOUBLE, False)),
    "group_norm_act_backward": ("group_norm_act_backward", lambda d: (
        images(d), images(d, FLOAT, LAST), values(d, 4), values(d, 4), statistics(d, 3, 2), "gelu", 0.0, 2,
        1e-5, FLOAT, [True, True, True])),
    "group_norm_act_backward of bias": ("group_norm_act_backward", lambda d: (
        images(d, HALF, LAST), images(d, HALF), None, values(d, 4), statistics(d, 3, 4), "silu", 0.0, 4, 1e-5,
        FLOAT, [False, False, True])),
    "instance_norm_update_running": ("instance_norm_update_running", lambda d: (
        statistics(d, 3, 4), *running(d), 10, 0.1)),
    "dropout": ("dropout", lambda d: (rows(d), seed(d), 0.4, None, "scaled", False)),
    "dropout of a transposed tensor": (
        "dropout", lambda d: (rows(d, HALF).t(), seed(d), 0.4, None, "scaled", False)),
    "dropout of channels_last channels": (
        "dropout", lambda d: (images(d, FLOAT, LAST), seed(d), 0.4, 2, "scaled", False)),
    "dropout of samples": ("dropout", lambda d: (images(d, HALF), seed(d), 0.4, 1, "unscaled", False)),
    "alpha dropout": ("dropout", lambda d: (rows(d), seed(d), 0.4, None, "alpha", False)),
    "dropout_add": ("dropout_add", lambda d: (
        rows(d), rows(d), None, None, seed(d), 0.4, 32, False, True, 48, FLOAT)),
    "dropout_add of scales, in float32": ("dropout_add", lambda d: (
        rows(d, HALF), rows(d), values(d, 8), values(d, 6), seed(d), 0.4, 16, False, True, 8, FLOAT)),
    "dropout_add of channels_last samples": ("dropout_add", lambda d: (
        images(d, FLOAT, LAST), images(d), None, None, seed(d), 0.4, 32, True, False, 40, FLOAT)),
    "dropout_add of a branch alone": ("dropout_add", lambda d: (
        rows(d, HALF), None, values(d, 8), None, None, 0.0, 0, False, True, 8, HALF)),
    "dropout_add_backward": ("dropout_add_backward", lambda d: (
        rows(d), rows(d, HALF), values(d, 8), values(d, 6), seed(d), 0.4, 16, False, True, True)),
    "dropout_add_backward of layer_scale": ("dropout_add_backward", lambda d: (
        rows(d), rows(d), values(d, 8), None, None, 0.0, 0, False, True, False)),
    "dropout_add_norm": ("dropout_add_norm", lambda d: (
        rows(d), rows(d), values(d, 8), values(d, 8), None, None, seed(d), 0.4, 32, (8,), 1e-5, FLOAT, FLOAT,
        True, True, True)),
    "dropout_add_norm of scales, sum in float32, not centred": ("dropout_add_norm", lambda d: (
        images(d, HALF, LAST), images(d), values(d, 2, 5), None, values(d, 2, 5), values(d, 3), seed(d), 0.4,
        16, (2, 5), 1e-5, FLOAT, HALF, False, True, True)),
    "dropout_add_norm without gradients": ("dropout_add_norm", lambda d: (
        rows(d), None, None, values(d, 8), None, None, None, 0.0, 0, (8,), 1e-5, FLOAT, FLOAT, True, False,
        False)),
    "dropout_add_norm_backward": ("dropout_add_norm_backward", lambda d: (
        rows(d), rows(d), rows(d), rows(d), values(d, 8), values(d, 8), values(d, 6), statistics(d, 6),
        seed(d), 0.4, 32, (8,), True, FLOAT, FLOAT, FLOAT, [True, True, True, True, True])),
    "dropout_add_norm_backward of a sum": ("dropout_add_norm_backward", lambda d: (
        rows(d, HALF), None, rows(d), None, None, None, None, values(d, 6, 1), None, 0.0, 0, (8,), False,
        HALF, FLOAT, HALF, [True, False, True, False, False])),
    "ada_norm of bfloat16, sum in float32": ("ada_norm", lambda d: (
        values(d, 2, 3, 8, dtype=HALF), values(d, 2, 1, 8), values(d, 2, 1, 8), values(d, 8), values(d, 8),
        values(d, 2, 3, 8), values(d, 2, 1, 8), 1e-5, FLOAT, HALF, True, True, True)),
    "ada_norm_backward of bfloat16, sum in float32": ("ada_norm_backward", lambda d: (
        values(d, 2, 3, 8, dtype=HALF), values(d, 2, 3, 8), values(d, 2, 3, 8),
        values(d, 2, 3, 8, dtype=HALF), values(d, 2, 1, 8), values(d, 2, 1, 8), values(d, 8), values(d, 8),
        values(d, 2, 1, 8), statistics(d, 6), True, HALF, FLOAT, FLOAT, FLOAT, [True] * 7)),
    "bias_act_dropout": ("bias_act_dropout", lambda d: (
        rows(d), values(d, 8), seed(d), 0.4, 32, "gelu", 0.0)),
    "bias_act_dropout without bias": ("bias_act_dropout", lambda d: (
        images(d, HALF, LAST), None, None, 0.0, 0, "leaky_relu", 0.2)),
    "bias_act_dropout_backward": ("bias_act_dropout_backward", lambda d: (
        rows(d), rows(d), values(d, 8), seed(d), 0.4, 32, "silu", 0.0, [True, True])),
    "bias_act_dropout_backward of bias": ("bias_act_dropout_backward", lambda d: (
        rows(d, HALF), rows(d, HALF), values(d, 8), seed(d), 0.4, 16, "relu", 0.0, [False, True])),
    "qk_norm with rotary": ("qk_norm", lambda d: (
        heads(d), heads(d, 1), values(d, 8), values(d, 8), None, None, values(d, 3, 1, 8),
        values(d, 3, 1, 8), 1e-5, FLOAT, False, False, True)),
    "qk_norm of transposed slices, centred, in float32": ("qk_norm", lambda d: (
        heads(d, 6, HALF)[:, :, :4].transpose(1, 2), heads(d, 6, HALF)[:, :, 4:].transpose(1, 2), None, None,
        values(d, 8), None, None, None, 1e-5, FLOAT, True, False, True)),
    "qk_norm without statistics": (
        "qk_norm", lambda d: (heads(d), heads(d), *[None] * 6, 1e-5, FLOAT, False, False, False)),
    "qk_norm_backward": ("qk_norm_backward", lambda d: (
        heads(d), heads(d, 1), heads(d), heads(d, 1), values(d, 8), values(d, 8), None, None,
        statistics(d, 24), statistics(d, 6), True, False, FLOAT, [True] * 6)),
    "qk_norm_backward of queries alone": ("qk_norm_backward", lambda d: (
        heads(d, 3, HALF), None, heads(d, 3, HALF).transpose(1, 2), heads(d, 3, HALF), None, None,
        values(d, 3, 1, 6), values(d, 3, 1, 6), values(d, 18, 1), values(d, 18, 1), False, True, HALF,
        [True, True, False, True, False, False])),
    "rms_norm_gated": ("rms_norm_gated", lambda d: (
        rows(d), rows(d), values(d, 8), values(d, 8), 8, True, "silu", 1e-5, FLOAT, True)),
    "rms_norm_gated in groups, behind a gate of float32": ("rms_norm_gated", lambda d: (
        rows(d, HALF), rows(d).t().contiguous().t(), None, values(d, 8), 4, False, "sigmoid", 1e-5, HALF,
        True)),
    "rms_norm_gated without statistics": ("rms_norm_gated", lambda d: (
        images(d, HALF, LAST), images(d, HALF), None, None, 5, True, "silu", 1e-5, FLOAT, False)),
    "rms_norm_gated_backward": ("rms_norm_gated_backward", lambda d: (
        rows(d), rows(d), rows(d), values(d, 8), values(d, 8), values(d, 12), 4, True, "silu", FLOAT,
        [True, True, True, True])),
    "rms_norm_gated_backward of a gate of float32": ("rms_norm_gated_backward", lambda d: (
        images(d, HALF), images(d, HALF, LAST), images(d), None, None, values(d, 24), 5, False, "silu", HALF,
        [False, True, False, False])),
    "alpha dropout's gradient": ("dropout", lambda d: (rows(d), seed(d), 0.4, None, "alpha", True)),
}  # fmt: skip

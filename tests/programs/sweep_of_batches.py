"""Launches every kernel over a sweep of batch sizes, which compiles nothing new.

BatchNorm's are compiled for powers of two up to 64.
"""

import torch

from bench.lab import stub_driver
from normreg.kernels import batch_norm, dropout, group_norm, launch, layer_norm, qk_norm, tiling
from normreg.kernels.group_norm import instance_norm
from normreg.kernels.layer_norm import rms_norm

held = tiling.channels.batch_norm_forward_tile, tiling.channels.batch_norm_backward_tile
tiling.channels.batch_norm_forward_tile = tiling.channels.batch_norm_backward_tile = lambda *_: None

all_three = (True, True, True)


def tensor(*shape, dtype=torch.bfloat16):
    return torch.zeros(shape, dtype=dtype)


def launch_batch_norm(batch):
    c, s, tracked = tensor(24), tensor(24, dtype=torch.float64), tensor(dtype=torch.int64)
    for x in (
        tensor(batch, 24, 14, 14),
        tensor(batch, 24, 14, 14).to(memory_format=torch.channels_last),
        tensor(batch, 24, 2, 2),
        tensor(batch, 24),
    ):
        batch_norm.batch_norm_forward(x, c, c, c, c, tracked, None, 1e-5, True)
        batch_norm.batch_norm_inference(x, c, c, c, c, 1e-5, True)
        batch_norm.batch_norm_backward(x, x, c, s, c, 1e-5, c.dtype, True, all_three)


def launch_all(batch):
    for cols in (64, 768, 12000, 20000, 70000):
        x, w = tensor(batch, cols), tensor(cols)
        three, one = (tensor(batch, n, dtype=torch.float32) for n in (3, 1))
        layer_norm.layer_norm_forward(x, w, w, (cols,), 1e-5, x.dtype, True)
        layer_norm.layer_norm_backward(x, x, w, three, (cols,), x.dtype, all_three)
        rms_norm.rms_norm_forward(x, w, (cols,), 1e-5, x.dtype, True)
        rms_norm.rms_norm_backward(x, x, w, one, (cols,), x.dtype, (True, True))
    c = tensor(24)
    for x in (tensor(batch, 24), tensor(batch, 24, 14, 14), tensor(batch, 24, 80, 80)):
        for groups in (3, 24):
            m = tensor(batch, groups, 3, dtype=torch.float32)
            group_norm.group_norm_forward(x, c, c, groups, 1e-5, x.dtype, True)
            group_norm.group_norm_backward(x, x, c, m, groups, 1e-5, c.dtype, all_three)
    for size in (14, 80):
        x = tensor(batch, 24, size, size).to(memory_format=torch.channels_last)
        m = tensor(batch, 3, 3, dtype=torch.float32)
        group_norm.group_norm_forward(x, c, c, 3, 1e-5, x.dtype, True, "silu")
        group_norm.group_norm_backward(x, x, c, m, 3, 1e-5, c.dtype, all_three, c, "silu")
    q, k, w = tensor(2, batch, 4, 64), tensor(2, batch, 2, 64), tensor(64)
    of_q, of_k = (tensor(x.shape[:-1].numel(), 1, dtype=torch.float32) for x in (q, k))
    for turned, interleaved in ((64, False), (32, True)):
        angles = [tensor(batch, 1, turned)] * 2
        numbers = 1e-5, q.dtype, False, interleaved, True
        qk_norm.qk_norm_forward(q, k, w, w, None, None, *angles, *numbers)
        wanted = (True,) * 4 + (False,) * 2
        qk_norm.qk_norm_backward(q, k, q, k, w, w, *angles, of_q, of_k, False, interleaved, q.dtype, wanted)
    m = tensor(batch, 24, 3, dtype=torch.float32)
    instance_norm.instance_norm_update_running(m, c, c, 6400, 0.1)
    dropout.dropout(tensor(batch, 768), 0.1, batch)
    dropout.dropout(tensor(batch, 768), 0.1, batch, constants=dropout.alpha)
    image = tensor(batch, 24, 14, 14)
    for leading, x in ((1, image), (2, image), (2, image.to(memory_format=torch.channels_last))):
        dropout.dropout(x, 0.1, batch, leading=leading)


record = stub_driver.install()
launch_all(2)
compiled, launched = len(record.compiled), len(record.launched)
assert set(record.compiled) == {name for name, _ in record.launched}
assert launched == (5 * 3 + 1) + (5 * 3 + 1) + (5 * 3 + 2 + 4) + (3 + 7) + 2 * 3 + 1 + 5, launched
for batch in (1, 3, 16, 17, 32, 1000):
    launch_all(batch)
assert len(record.launched) == 7 * launched
assert len(record.compiled) == compiled, record.compiled[compiled:]

for batch in (1, 2, 4, 8, 16, 32, 64):
    launch_batch_norm(batch)
compiled, launched = len(record.compiled), len(record.launched)
for batch in (3, 17, 48, 100, 1000):
    launch_batch_norm(batch)
assert len(record.launched) == launched + 5 * 4 * 5
assert len(record.compiled) == compiled, record.compiled[compiled:]

tiling.channels.batch_norm_forward_tile, tiling.channels.batch_norm_backward_tile = held
launch.forget()
for batch in range(2, 65):  # a channel of all samples is a tile: from 2 to 4, ..., from 32 to 64
    x, c, s = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((batch, 24, 2, 2), (24,), (24,)))
    batch_norm.batch_norm_forward(x, c, c, c, c, None, 0.1, 1e-5, True)
    batch_norm.batch_norm_backward(x, x, c, s.double(), s.float(), 1e-5, c.dtype, True, (True, True, True))
new = record.compiled[compiled:]
assert set(new) == {"batch_norm_tile_kernel", "batch_norm_tile_backward_kernel"}
assert len(new) <= 2 * 6, len(new)
types = dict(record.launched)
assert types["layer_norm_forward_kernel"]["eps"] == "fp64"
assert types["batch_norm_normalize_kernel"]["momentum"] == "fp64"
assert types["dropout_kernel"]["seed"] == types["dropout_kernel"]["keep_threshold"] == "i64"
assert {types["dropout_grouped_kernel"][name] for name in ("scale", "shift", "dropped")} == {"fp64"}

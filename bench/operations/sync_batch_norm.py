"""SyncBatchNorm, which needs several ranks to be measured; `ranks_sync_batch_norm.py` has its tests."""

import torch
import torch.nn.functional as F

from normreg.kernels import batch_norm
from normreg.kernels.batch_norm import synchronized as ranks

from .batch_norm import OPERATION as OF_BATCH_NORM
from .composed import Residual
from .operation import Layer, Operation, Smoke
from .problem import Problem


class TwoRanks(torch.autograd.Function):
    """SyncBatchNorm of two ranks in one process, which exchange what they pack without a collective."""

    @staticmethod
    def forward(ctx, x, w, b):
        halves = [half.contiguous() for half in x.chunk(2)]
        gathered = torch.cat([ranks.pack(half, None) for half in halves])
        results = [
            ranks.normalize(half, gathered, w, b, None, None, None, 0.1, 1e-5, batch_norm.NOTHING)
            for half in halves
        ]
        _, *statistics = results[0]
        ctx.save_for_backward(*halves, w, b, *statistics)
        return torch.cat([y for y, *_ in results])

    @staticmethod
    def backward(ctx, dy):
        *halves, w, b, mean, var, count = ctx.saved_tensors
        dys = [half.contiguous() for half in dy.chunk(2)]
        packed, dweights, dbiases, _ = zip(
            *(
                ranks.backward_pack(
                    dy, x, w, b, mean, var, count, 1e-5, torch.promote_types(w.dtype, torch.float32),
                    (True, True, True, False), batch_norm.NOTHING,
                )
                for dy, x in zip(dys, halves)
            )
        )  # fmt: skip
        sums = sum(packed)
        dx = [
            ranks.backward(dy, x, w, b, mean, var, sums, None, 1e-5, batch_norm.NOTHING)
            for dy, x in zip(dys, halves)
        ]
        return torch.cat(dx), sum(dweights).to(w.dtype), sum(dbiases).to(b.dtype)


def two_ranks(make, *shape):
    return Problem(
        [make(*shape), make(shape[1]), make(shape[1])],
        TwoRanks.apply,
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
    )


OPERATION = Operation(
    name="sync_batch_norm",
    kernels="batch_norm",
    over="channels",
    functions={},
    layers={  # which of one rank are BatchNorm
        "SyncBatchNorm": Layer((6,), (6,)),
        "SyncBatchNormAct": Layer((6,), (6,), module=Residual),
    },
    kept=OF_BATCH_NORM.kept,
    problem=two_ranks,
    smoke=(Smoke("bf16 fp32 fp64", "6x40x5x5"),),
)

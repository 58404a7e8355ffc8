"""Sizes and dtypes at which `smoke` calls the families of kernels: those at which each kernel is reached."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.operations.case import DTYPES
from bench.smoke import problems as smoke_problems
from bench.smoke.problems import (
    Maker,
    alpha_dropout,
    batch_norm_act,
    batch_norm_alone,
    bias_act_dropout,
    drop_path_add,
    dropout,
    dropout_add,
    dropout_add_norm,
    group_norm,
    instance_norm,
    l2_penalty,
    layer_norm,
    layer_norm_channels,
    rms_norm,
    sync_batch_norm,
)

INTERPRETED_ELEMENTS, INTERPRETED_COLS = 2**17, 2**14  # of tensors and of rows, at most, in the interpreter


@dataclass(frozen=True)
class Case:
    family: str
    dtype: str  # of DTYPES
    what: str
    interpreted: bool  # also where there is no GPU
    build: Callable  # of a Maker: the Problem

    def __str__(self):
        return f"{self.family} {self.dtype} {self.what}"

    def problem(self, device):
        torch.manual_seed(0)
        return self.build(Maker(device, DTYPES[self.dtype]))


ALL, WIDE_TYPES, NARROW = ("bf16", "fp32", "fp16", "fp64"), ("bf16", "fp32", "fp64"), ("bf16", "fp32")
# A line: dtypes, what builds the problem, its sizes and options. Of a family what tells most comes first.
TABLE = {
    "layer_norm": [
        (ALL, layer_norm, (768,)),
        (WIDE_TYPES, layer_norm, (64,)),  # several rows a program
        (ALL, layer_norm, (1025,)),  # odd
        (("bf16", "fp16"), layer_norm, (5120,)),  # in parts
        (NARROW, layer_norm, (12288,)),  # in parts; float32 backward in two passes
        (("bf16",), layer_norm, (65536,)),  # in parts, packed
        (("bf16",), layer_norm, (131072,)),  # in two passes
        (("fp64",), layer_norm, (16392,)),
    ],
    "rms_norm": [
        (ALL, rms_norm, (768,)),
        (("bf16",), rms_norm, (5120,)),
        (("fp32",), rms_norm, (1025,)),
        (("bf16",), rms_norm, (131072,)),
    ],
    "layer_norm_channels": [
        (ALL, layer_norm_channels, (8, 96, 7, 9)),
        (("bf16",), layer_norm_channels, (2, 3000, 3, 3)),  # too many to be held
    ],
    "batch_norm": [
        (ALL, batch_norm_alone, (8, 6, 5, 5)),
        (("bf16", "fp16"), batch_norm_alone, (300, 129)),
        (NARROW, batch_norm_alone, (2, 64, 7, 7), dict(last=True)),
        (ALL, batch_norm_alone, (32, 64, 14, 14), dict(last=True)),  # split
        (("bf16", "fp64"), batch_norm_alone, (4, 3, 200, 201)),  # split
        (("bf16", "fp16"), batch_norm_alone, (8, 6, 5, 5), dict(training=False)),
        (("fp32",), batch_norm_alone, (4, 64, 14, 14), dict(last=True, training=False)),
    ],
    "batch_norm_act": [
        (ALL, batch_norm_act, (8, 6, 5, 5)),
        (("bf16",), batch_norm_act, (8, 6, 5, 5), dict(act="relu", residual=True)),
        (NARROW, batch_norm_act, (32, 64, 14, 14), dict(last=True, act="relu", residual=True)),
        (("bf16",), batch_norm_act, (4, 3, 200, 201), dict(act="gelu")),
        (("bf16",), batch_norm_act, (8, 6, 5, 5), dict(act="relu", training=False)),
    ],
    "sync_batch_norm": [(WIDE_TYPES, sync_batch_norm, (6, 40, 5, 5))],
    "group_norm": [
        (ALL, group_norm, (4, 64, 8, 8), dict(groups=8)),
        (("bf16",), group_norm, (33, 129), dict(groups=3)),
        (WIDE_TYPES, group_norm, (2, 32, 64, 64), dict(groups=2)),  # split
    ],
    "instance_norm": [
        (ALL, instance_norm, (8, 6, 5, 7)),
        (("bf16",), instance_norm, (2, 3, 200, 201)),  # split
    ],
    "dropout": [
        (ALL, dropout, (100, 1000), dict(function="dropout")),
        (("bf16",), dropout, (33, 129), dict(function="dropout")),
        (("bf16", "fp32"), dropout, (8, 40, 7, 7), dict(function="dropout2d")),
        (("bf16",), dropout, (8, 40, 8, 8), dict(function="dropout2d", last=True)),
        (("bf16",), dropout, (64, 100), dict(function="drop_path")),
        (("bf16", "fp64"), alpha_dropout, (100, 1000)),
    ],
    "dropout_add": [
        (ALL, dropout_add, (129, 768), dict(scaled=False)),
        (NARROW, dropout_add, (129, 768), dict(scaled=True)),
        (("bf16",), drop_path_add, (8, 40, 7, 7)),
    ],
    "dropout_add_norm": [
        (ALL, dropout_add_norm, (768,)),
        (NARROW, dropout_add_norm, (768,), dict(p=0.0)),
        (("bf16",), dropout_add_norm, (5120,)),  # in parts
        (("bf16",), dropout_add_norm, (1025,), dict(norm="rms_norm", scaled=True)),
        (("bf16",), dropout_add_norm, (131072,), dict(norm="rms_norm")),  # in two passes
    ],
    "bias_act_dropout": [
        (ALL, bias_act_dropout, (129, 768)),
        (NARROW, bias_act_dropout, (129, 768), dict(p=0.0)),
        (("bf16",), bias_act_dropout, (129, 1001), dict(act="silu", bias=False)),
    ],
    "l2_penalty": [(("bf16", "fp32", "fp64"), l2_penalty, (1000, 33333, 7, 70000))],
}


def _interpreted(build, sizes):
    if build in (layer_norm, rms_norm, dropout_add_norm):
        return sizes[0] <= INTERPRETED_COLS
    return build is l2_penalty or torch.Size(sizes).numel() <= INTERPRETED_ELEMENTS


def _case(family, dtype, build, sizes, options):
    words = [build.__name__] * (build.__name__ not in (family, f"{family}_alone"))
    words += ["x".join(map(str, sizes)), *(f"{name}={value}" for name, value in options.items())]
    interpreted = _interpreted(build, sizes)
    return Case(family, dtype, " ".join(words), interpreted, lambda make: build(make, *sizes, **options))


def cases(families=None):
    """bfloat16 of every family first, the families in turn."""
    found = []
    for family, lines in TABLE.items():
        for number, (dtypes, build, sizes, *options) in enumerate(lines):
            for dtype in dtypes:
                case = _case(family, dtype, build, sizes, *(options or [{}]))
                found.append((ALL.index(dtype) > 0, number, ALL.index(dtype), case))
    found = [case for *_, case in sorted(found, key=lambda entry: entry[:3])]
    if not smoke_problems.ON_A_GPU:
        found = [case for case in found if case.interpreted]
    return [case for case in found if case.family in (families or TABLE)]

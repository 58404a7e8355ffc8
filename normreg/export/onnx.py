"""`onnx_table`: the ONNX nodes of every operator of ours."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch


def onnx_table() -> dict[Any, Callable[..., Any]]:
    """A table for `torch.onnx.export(..., dynamo=True, custom_translation_table=normreg.onnx_table())`.

    {operator: function that makes its nodes}, for every operator of a forward. Where ONNX has a node for an
    operator, that is what it becomes: LayerNormalization, RMSNormalization (from `opset_version` 23 on),
    GroupNormalization (21), InstanceNormalization, BatchNormalization, Dropout. Below those versions, and for
    fusions, it becomes a few nodes. float8 needs 19. Statistics of 16 bits are float32: nodes that have a
    `stash_type` take 16 bits as they are, and multiply by weights in 16 bits; others are given float32.

    As with torch's own layers, dropout in training becomes ONNX's Dropout, with random numbers of its own.
    torch.onnx raises an error where BatchNorm or InstanceNorm would update running statistics, and, without
    this table, at the first of our operators. Raises ImportError where onnxscript is not installed.

    Example::

        program = torch.onnx.export(
            model.eval(), (x,), dynamo=True, custom_translation_table=normreg.onnx_table()
        )
        program.save("model.onnx")
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"expected onnx and onnxscript to be installed, got no {package}: pip install onnx onnxscript"
            )
    from normreg.export.onnx_nodes import TRANSLATIONS

    return {getattr(torch.ops.normreg, name).default: nodes for name, nodes in TRANSLATIONS.items()}

"""ONNX programs of models of ours, and what runtimes compute with them."""

import pytest
import torch

import normreg

onnxruntime = pytest.importorskip("onnxruntime")


class Together(torch.nn.Module):
    """Models, each of an input of its own."""

    def __init__(self, models):
        super().__init__()
        self.models = torch.nn.ModuleList(models)

    def forward(self, *inputs):
        return [model(x) for model, x in zip(self.models, inputs, strict=True)]


def exported(model, inputs, opset, **options):
    """The program of a model, or of one that torch.export has made."""
    options = dict(custom_translation_table=normreg.onnx_table()) | options
    return torch.onnx.export(model, inputs, dynamo=True, opset_version=opset, verbose=False, **options)


def op_types(program):
    return [node.op_type for node in program.model.graph]


def in_runtime(program, inputs):
    """What onnxruntime computes, on a CPU."""
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {argument.name: t.detach().cpu().numpy() for argument, t in zip(session.get_inputs(), inputs)}
    return [torch.from_numpy(y) for y in session.run(None, feeds)]


def in_reference(program, inputs):
    """What onnx's own evaluator computes, which has bfloat16; results in float64."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(program.model_proto)
    types = {i.name: i.dtype.numpy() for i in program.model.graph.inputs}
    feeds = {name: t.detach().cpu().float().numpy().astype(types[name]) for name, t in zip(types, inputs)}
    return [torch.from_numpy(y.astype("float64")) for y in evaluator.run(None, feeds)]


def updated(program):
    """Names of what an exported program's operators of ours update."""
    return [
        argument.name
        for node in program.graph.nodes
        if str(node.target).startswith("normreg.")
        for argument, value in zip(node.target._schema.arguments, node.args)
        if argument.is_write and value is not None
    ]


def assert_same(ours, expected, units=16):
    """units: of float32, that sums in another order may differ by."""
    expected = expected if isinstance(expected, (tuple, list)) else (expected,)
    for our, one in zip(ours, expected, strict=True):
        tolerance = units * torch.finfo(torch.float32).eps
        torch.testing.assert_close(our, one.detach().cpu(), rtol=tolerance, atol=4 * tolerance)

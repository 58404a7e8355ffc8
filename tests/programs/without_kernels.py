"""Prints, as JSON, what a model computes and why where there is neither a GPU nor the interpreter."""

import copy
import json

import torch
import torch.nn.functional as F

import normreg
from normreg.functional import dispatch
from normreg.kernels import launch


def step(model, x):
    torch.manual_seed(4)
    model.train()
    y = model(x)
    gradients = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    return [y, *gradients, *model.state_dict().values(), model.eval()(x)]


assert not torch.cuda.is_available()
assert not launch.INTERPRET
launch.launch = None
plain = torch.nn.Sequential(
    torch.nn.BatchNorm1d(4),
    torch.nn.Dropout(0.25),
    torch.nn.Linear(4, 5),
    torch.nn.LayerNorm(5),
    torch.nn.RMSNorm(5),
    torch.nn.Unflatten(1, (5, 1, 1)),
    torch.nn.BatchNorm2d(5, momentum=None),
    torch.nn.GroupNorm(1, 5),
    torch.nn.Upsample(scale_factor=2),
    torch.nn.InstanceNorm2d(5),
    torch.nn.AvgPool2d(2),
    torch.nn.Dropout(0.5),
    torch.nn.Dropout2d(0.25),
    torch.nn.Dropout3d(0.25),
    torch.nn.AlphaDropout(0.25),
    torch.nn.FeatureAlphaDropout(0.25),
    torch.nn.Flatten(),
    torch.nn.Dropout1d(0.25),
)
replaced = copy.deepcopy(plain)
report = normreg.replace(replaced)
batches = torch.randn(2, 8, 4)
equal = [
    torch.equal(ours, theirs)
    for x in batches
    for ours, theirs in zip(step(replaced, x), step(plain, x), strict=True)
]


def graph(f):  # targets of the nodes that torch.compile makes of f
    targets = []

    def backend(module, inputs):
        targets.extend(str(getattr(node.target, "__name__", node.op)) for node in module.graph.nodes)
        return module

    torch.compile(f, backend=backend, fullgraph=True)(batches)
    return targets


def graphs(library):
    return [
        graph(lambda x: library.layer_norm(x, (4,))),
        graph(lambda x: library.rms_norm(x, (4,))),
        graph(lambda x: library.batch_norm(x, None, None, training=True)),
        graph(lambda x: library.dropout(x, 0.5)),
    ]


print(
    json.dumps(
        dict(
            graphs=[graphs(F), graphs(normreg.functional)],
            changed=len(report.changed),
            compared=len(equal),
            equal=sum(equal),
            reasons=[
                dispatch.layer_norm(batches, (4,), None, None, 1e-5),
                dispatch.rms_norm(batches, (4,), None, None),
                dispatch.batch_norm(batches, None, None, None, None, True, 0.1, 1e-5, None),
                dispatch.group_norm(batches, 2, None, None, 1e-5),
                dispatch.instance_norm(batches, None, None, None, None, True, 0.1, 1e-5),
                dispatch.dropout(batches, 0.5, False),
            ],
        )
    )
)

"""Checks of steps captured in CUDA graphs: `python graphs.py CASE`, a process each.

A capture that fails leaves torch's generator unusable in its process.
"""

import copy
import sys

import operations
import torch

import normreg
from normreg import functional


def above_least(y):
    """0 where y has its least value, which is that of alpha dropout's dropped elements."""
    return y - y.detach().min()


# functions of x [64, 512], positive, whose last result is 0 where an element is dropped, and nowhere else
MASKS = {
    "dropout": lambda x: [functional.dropout(x, 0.5)],
    "dropout1d": lambda x: [functional.dropout1d(x.view(8, 8, 512), 0.5)],
    "dropout2d": lambda x: [functional.dropout2d(x.view(8, 8, 16, 32), 0.5)],
    "dropout3d": lambda x: [functional.dropout3d(x.view(8, 8, 4, 8, 16), 0.5)],
    "alpha_dropout": lambda x: [above_least(functional.alpha_dropout(x, 0.5, True))],
    "feature_alpha_dropout": lambda x: [
        above_least(functional.feature_alpha_dropout(x.view(8, 8, 512), 0.5, True))
    ],
    "drop_path": lambda x: [functional.drop_path(x, 0.5, True)],
    "dropout_add": lambda x: [functional.dropout_add(x, torch.zeros_like(x), 0.5)],
    "drop_path_add": lambda x: [functional.drop_path_add(x, torch.zeros_like(x), 0.5, True)],
    "dropout_add_layer_norm": lambda x: functional.dropout_add_layer_norm(
        x, torch.zeros_like(x), (512,), p=0.5, prenorm=True
    ),
    "dropout_add_rms_norm": lambda x: functional.dropout_add_rms_norm(
        x, torch.zeros_like(x), (512,), p=0.5, prenorm=True
    ),
    "bias_act_dropout": lambda x: [functional.bias_act_dropout(x, None, None, 0.5)],
}

LAYERS = {name: (row.make, (16, *row.sample)) for name, row in operations.LAYERS.items() if not row.draws} | {
    "wide LayerNorm": (lambda: normreg.LayerNorm(70_000), (4, 70_000)),
    "BatchNorm2d, split": (lambda: normreg.BatchNorm2d(3, momentum=None), (16, 3, 200, 200)),
}


def captured(step):
    """Captures the step after three runs of it; returns the graph, and the results that each replay fills."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


def loss_of(results):
    """A sum in which every element has a weight of its own, of at least 1."""
    return sum((t * torch.linspace(1, 2, t.numel(), device=t.device).view_as(t)).sum() for t in results)


def with_gradients(results, inputs):
    """Results, detached, and gradients: autograd's graph would keep the stream of the capture."""
    return [*(t.detach() for t in results), *torch.autograd.grad(loss_of(results), inputs)]


def kept_by(z, dx):
    """The mask that the last result and the gradient of a function of MASKS share."""
    kept = z.view_as(dx) != 0
    assert torch.equal(dx != 0, kept)
    assert 0.2 < kept.double().mean() < 0.8
    return kept


def input_of_masks(device):
    return torch.rand(64, 512, device=device).add(1).requires_grad_()


def check_masks(function):
    """Two replays have two masks, of both directions alike; the seed decides them."""
    x = input_of_masks("cuda")
    graph, results = captured(lambda: with_gradients(function(x), [x]))

    def replayed():
        graph.replay()
        return kept_by(*results[-2:])

    first, second = replayed(), replayed()
    assert not torch.equal(first, second)
    seeded = []
    for _ in range(2):
        torch.manual_seed(5)
        seeded.append([replayed(), replayed()])
    assert torch.equal(seeded[0][0], seeded[1][0])
    assert torch.equal(seeded[0][1], seeded[1][1])
    assert not torch.equal(*seeded[0])
    eager = with_gradients(function(x), [x])  # and without the graph it goes on
    assert not torch.equal(eager[-2].view_as(x) != 0, seeded[0][1])


def check_layer(make, shape):
    """Replays compute what the layer computes without a graph, running statistics included."""
    layer = make().cuda()
    x = torch.randn(shape, device="cuda", requires_grad=True)

    def step(layer):
        return with_gradients([layer(x)], [x, *layer.parameters()])

    graph, results = captured(lambda: step(layer))
    twin = copy.deepcopy(layer)
    for scale in (2, 3):
        with torch.no_grad():
            x.normal_(mean=scale, std=scale)
        graph.replay()
        for ours, expected in zip(results, step(twin), strict=True):
            assert torch.equal(ours, expected)
        for ours, expected in zip(layer.buffers(), twin.buffers(), strict=True):
            assert torch.equal(ours, expected)


def check_penalty():
    """A graph follows its parameters."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    tensors = [torch.randn(5000, device="cuda").to(dtype).requires_grad_() for dtype in dtypes]

    def step():
        return with_gradients([normreg.l2_penalty(tensors, 0.1)], tensors)

    graph, results = captured(step)
    for _ in range(2):
        with torch.no_grad():
            for w in tensors:
                w.mul_(-0.5)
        graph.replay()
        for ours, expected in zip(results, step(), strict=True):
            assert torch.equal(ours, expected)


CASES = {
    **{name: (check_masks, function) for name, function in MASKS.items()},
    **{name: (check_layer, *case) for name, case in LAYERS.items()},
    "l2_penalty": (check_penalty,),
}

if __name__ == "__main__":
    check, *arguments = CASES[sys.argv[1]]
    check(*arguments)
    torch.cuda.synchronize()

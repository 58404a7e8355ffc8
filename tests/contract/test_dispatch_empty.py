"""Tensors without elements: results, gradients, errors and buffers are torch's."""

import pytest
import torch
from operations import LIBRARIES
from outcomes import DISPATCHED, assert_same_outcome, every_operation, outcome, shape_of

import normreg

EMPTY = {
    "no rows": ("layer_norm", (0, 4), dict(normalized_shape=(4,))),
    "no rows of two dimensions": ("layer_norm", (2, 0, 3, 4), dict(normalized_shape=(3, 4))),
    "no columns": ("layer_norm", (3, 0), dict(normalized_shape=(0,))),
    "no rows of rms_norm": ("rms_norm", (0, 4), dict(normalized_shape=(4,))),
    "no columns of rms_norm": ("rms_norm", (3, 0), dict(normalized_shape=(0,))),
    "no batch": ("batch_norm", (0, 4), {}),
    "no batch of images": ("batch_norm", (0, 4, 3, 3), {}),
    "no positions": ("batch_norm", (3, 4, 0), {}),
    "no channels": ("batch_norm", (3, 0, 2), {}),
    "no batch of groups": ("group_norm", (0, 4, 3), dict(num_groups=2)),
    "no channels of groups": ("group_norm", (3, 0, 2), dict(num_groups=2)),
    "no instances": ("instance_norm", (0, 4, 3), {}),
    "no positions of instances": ("instance_norm", (3, 4, 0), {}),
    "nothing": ("dropout", (0,), {}),
    "nothing of three dimensions": ("dropout", (3, 0, 2), {}),
    "no batch to drop channels of": ("dropout1d", (0, 4, 2), {}),
    "no channels to drop": ("dropout2d", (2, 0, 3, 3), {}),
    "no positions to drop": ("dropout3d", (4, 3, 0, 3), {}),
    "nothing to set to alpha": ("alpha_dropout", (0,), {}),
    "no channels to set to alpha": ("feature_alpha_dropout", (3, 0, 2), {}),
}


@every_operation
def test_no_samples(device, launches, operation):
    x = torch.ones(0, *shape_of(operation)[1:], device=device, requires_grad=True)
    row, results = DISPATCHED[operation], []
    for library in LIBRARIES.values():
        others = [
            torch.ones(s if s != shape_of(operation) else x.shape, device=device) for s in row.shapes[1:]
        ]
        y = outcome(row, library, x, *others)
        gradients = outcome(torch.autograd.grad, y, x, torch.ones_like(y)) if type(y) is torch.Tensor else ()
        results.append((y, *gradients))
    for theirs, ours in zip(*results, strict=True):
        assert_same_outcome(ours, theirs)
    assert launches == []


@pytest.mark.parametrize(("operation", "shape", "options"), EMPTY.values(), ids=EMPTY)
def test_empty_tensors(device, launches, operation, shape, options):
    affine_shape = options.get("normalized_shape", shape[1:2])
    results = []
    for library in LIBRARIES.values():
        x = torch.ones(shape, device=device, requires_grad=True)
        arguments, buffers = dict(options), {}
        if "norm" in operation:
            arguments |= {
                name: torch.ones(affine_shape, device=device, requires_grad=True)
                for name in ("weight", "bias")[: 1 if operation == "rms_norm" else 2]
            }
        if operation == "batch_norm":
            buffers = {
                name: torch.ones(affine_shape, device=device) for name in ("running_mean", "running_var")
            }
        y = outcome(
            getattr(library, operation),
            x,
            **arguments,
            **buffers,
            **({"training": True} if operation in ("batch_norm", "dropout") else {}),
        )
        leaves = [x, *(a for a in arguments.values() if isinstance(a, torch.Tensor))]
        gradients = ()
        if not isinstance(y, Exception):
            gradients = outcome(torch.autograd.grad, y, leaves, torch.ones_like(y))
        results.append((y, gradients, [*buffers.values()]))
    (theirs, their_gradients, their_buffers), (ours, our_gradients, our_buffers) = results
    assert_same_outcome(ours, theirs)
    if isinstance(their_gradients, Exception):
        assert_same_outcome(our_gradients, their_gradients)
        our_gradients = their_gradients = ()
    tensors = [*our_gradients, *our_buffers], [*their_gradients, *their_buffers]
    for our, their in zip(*tensors, strict=True):
        assert torch.equal(our, their)
        assert our.isfinite().all()
    assert launches == []


@pytest.mark.parametrize("momentum", [0.1, None], ids=["momentum", "cumulative"])
def test_empty_batch_leaves_a_layer_as_torch_does(device, momentum):
    x = torch.randn(0, 4, 3, device=device)
    states = []
    for library in (torch.nn, normreg):
        module = library.BatchNorm1d(4, momentum=momentum, device=device)
        y = module(x)
        states.append([y.detach(), *module.state_dict().values()])
    for our, their in zip(*states, strict=True):
        assert torch.equal(our, their)
        assert our.isfinite().all()

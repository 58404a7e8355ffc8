"""`diagnose`: measures every layer's activations and gradients; says which vanish, explode or are dead."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from normreg.inspection.diagnosis import Diagnosis, judged
from normreg.inspection.measurement import Measurements, measurable
from normreg.models.unchanged import check_runs, unchanged


def _projection(output: Any, without: str) -> torch.Tensor:
    """The default loss: a random projection of everything in the output that has a gradient."""
    found = [y for y in tree_leaves(output) if measurable(y) and y.requires_grad]
    if not found:
        raise ValueError(
            f"expected the model to return a floating-point tensor that requires a gradient, or several, got "
            f"{type(output).__name__} without one{without and f' ({without}, ran without gradients)'}: "
            f"unfreeze parameters by requires_grad_(True) or give an input that requires a gradient; of an "
            f"output that holds its tensors out of sight, pass loss="
        )
    generator = torch.Generator("cpu").manual_seed(0)
    like: Any = dict(dtype=torch.float32, device="cpu", generator=generator)
    projected = [(torch.randn(y.shape, **like).to(y) * y).double().sum().cpu() for y in found]
    return functools.reduce(torch.add, projected)


def _loss(output: Any, loss: Callable[[Any], torch.Tensor] | None, without: str) -> torch.Tensor:
    """The loss; `without`: the first module that ran without gradients, if any."""
    y: Any = _projection(output, without) if loss is None else loss(output)
    if not isinstance(y, torch.Tensor) or y.numel() != 1 or not y.requires_grad:
        got = f"a tensor of shape {list(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
        lacking = "" if not isinstance(y, torch.Tensor) or y.requires_grad else " without a gradient"
        raise ValueError(
            f"expected loss to return a tensor of one element that requires a gradient, got {got}{lacking}: "
            f"pass such as loss=lambda output: torch.nn.functional.cross_entropy(output, labels)"
        )
    return y


def _check_recomputes_nothing(y: torch.Tensor, without: str) -> None:
    """Raises where a backward would run layers again: reentrant checkpointing, for all parameters or none."""
    nodes, seen = [y.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ == "CheckpointFunctionBackward":
            raise ValueError(
                f"expected layers that run with gradients, got {without or 'a function'}, in a checkpoint "
                f"with use_reentrant=True, which runs it without them, and again in the backward: give the "
                f"checkpoint use_reentrant=False, or turn checkpointing off meanwhile, in transformers by "
                f"model.gradient_checkpointing_disable()"
            )
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]


def _check(loss: Any, vanishing: Any, exploding: Any, dead: Any) -> None:
    if loss is not None and not callable(loss):
        raise TypeError(
            f"expected loss to be a function of the model's output, got {type(loss).__name__}: pass such as "
            f"loss=lambda output: torch.nn.functional.cross_entropy(output, labels)"
        )
    ranges = {"vanishing": (vanishing, 0, 1), "exploding": (exploding, 1, math.inf), "dead": (dead, 0, 1)}
    for name, (number, least, most) in ranges.items():
        if not isinstance(number, (int, float)) or not least < number <= most:
            raise ValueError(
                f"expected {name} to be a number above {least} and at most {most}, got {number!r}: it is the "
                f"limit from which a layer is flagged; leave it out for the usual one"
            )


def diagnose(
    model: torch.nn.Module,
    *inputs: Any,
    loss: Callable[[Any], torch.Tensor] | None = None,
    vanishing: float = 1e-3,
    exploding: float = 1e3,
    dead: float = 0.99,
    **options: Any,
) -> Diagnosis:
    r"""Runs `model(*inputs, **options)` forward and backward, and measures what passes through every layer.

    Of the output y of every layer and of its gradient dy = d loss / d y, over all n elements:
    mean = sum(y) / n, variance = sum((y - mean)^2) / n, norm = sqrt(sum(y^2)), in float64, in the units of y
    and of loss / y. A layer is a call of a module inside which no other module ran, but for those that
    parametrize its weights, with or without parameters; a module that is called twice is listed twice, and
    one that returns several tensors once for each. Of a normreg BatchNorm in training whose kernel ran, y's
    are computed from the statistics that the kernel kept, without reading y: the mean of a channel is bias,
    its variance weight^2 var / (var + eps).

    Flags, by the root mean square rms = norm / sqrt(n):

    - vanishing, exploding: below `vanishing` or above `exploding` times that of the first layer
      (activations) or the last (gradients), or not finite. A step of gradient descent moves a layer in
      proportion to its gradient: at a thousandth, the layer stands still at any learning rate at which the
      others do not diverge. Half precision has four powers of ten below 1. Sound networks of 50 layers stay
      within a factor of ten or so (bench/study/README.md).
    - dead: at least `dead` of the activations are exactly 0, or all gradients are. ReLU makes half of them
      0, dropout of p = 0.9 another 45 %. Branches that `init.zero_residual_` has closed are dead, too, until
      the first step.

    The model is run as it stands, in its modes of training, with gradients. Nothing is left behind, also
    where it raises: inputs, buffers and tensors that are attributes of modules are copies during the run,
    attributes and random numbers are set back, and no parameter's .grad is written. The model's own hooks
    run: of a module's own forward hooks, y is what they are given. A compiled model is run in eager mode; of
    DistributedDataParallel, give the `.module`.

    Args:
        model: a torch.nn.Module.
        inputs, options: what it is called with; tensors also in tuples, lists and dicts.
        loss: a function of the model's output that returns a tensor of one element. By default
            sum(v * output) over all floating-point tensors in the output, v ~ N(0, 1) and the same at every
            call, so that the last gradients have variance 1 whatever the output is.
        vanishing, exploding, dead: the limits of the flags.

    Returns a `Diagnosis`: iterable over its layers, each with name, kind, shape, activation, gradient and
    flags; `flagged` are those with any. Printed, it is a table; `plot(path)` draws it.

    Raises TypeError for what is not a module or a function and for inputs that its forward does not take,
    ValueError for uninitialized lazy modules, tensors without values, limits out of range, an output or loss
    without a gradient, and layers in a checkpoint with use_reentrant=True; and what the model raises.

    Equivalent::

        for module in model.modules():
            module.register_forward_hook(lambda module, inputs, y: (
                print(y.mean(), y.var(correction=0), y.norm()),
                y.register_hook(lambda dy: print(dy.mean(), dy.var(correction=0), dy.norm()))) and None)
        loss(model(*inputs)).backward()

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks"
    (2010); He et al., "Delving Deep into Rectifiers" (2015), arXiv 1502.01852
    """
    check_runs(model, inputs, options, "diagnose(model, x)")
    _check(loss, vanishing, exploding, dead)
    measurements = Measurements(model)
    with torch.inference_mode(False), torch.enable_grad(), unchanged(model) as copies:
        leaves: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by id, the copy and x, which keeps the id

        def copy(x: torch.Tensor) -> torch.Tensor:
            """A copy: no leaf, which could not be changed in place, and no part of the caller's graph."""
            if x.is_inference():
                return x.clone()
            if not x.requires_grad:
                return copies.of(x)
            leaf, _ = leaves.setdefault(id(x), (copies.of(x.detach()).requires_grad_(), x))
            return leaf.clone()

        inputs, options = tree_map_only(torch.Tensor, copy, (inputs, options))
        try:
            with measurements.following():
                output = model(*inputs, **options)
            y = _loss(output, loss, measurements.without_gradients)
            _check_recomputes_nothing(y, measurements.without_gradients)
            wanted = [p for p in model.parameters() if p.requires_grad] + [
                leaf for leaf, _ in leaves.values()
            ]
            if wanted:
                torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)
        finally:
            measurements.forget()
    limits = (vanishing, exploding, dead)
    return Diagnosis(judged(measurements.notes, limits), float(y.detach()), *limits)

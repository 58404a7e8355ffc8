"""`diagnose`: activations and gradients of every layer, and which of them vanish, explode or are dead."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from normreg.inspection.measurement import Recorder, Statistics, measurable
from normreg.models.report import counted, table
from normreg.models.unchanged import check_runs, unchanged

ROUNDING = 1e-6  # of the root mean square: a smaller mean is not drawn


@dataclass(frozen=True)
class Layer:
    """A call of a module inside which no other module ran; of its output that stands at `name`'s index."""

    name: str
    kind: str
    shape: tuple
    activation: Statistics
    gradient: Statistics | None  # of the loss with respect to the output; None where none reaches it
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found: iterates over `layers`, in the order of their calls; prints as a table."""

    layers: tuple[Layer, ...]
    loss: float
    vanishing: float
    exploding: float
    dead: float

    def __iter__(self):
        return iter(self.layers)

    @property
    def flagged(self):
        return tuple(layer for layer in self.layers if layer.flags)

    def __str__(self):
        lines = [f"{counted(self.layers)}, {len(self.flagged)} flagged; loss {self.loss:.4g}"]
        of = [f"{what} {of}" for of in ("activation", "gradient") for what in ("mean", "variance", "norm")]
        rows = [
            (
                layer.name, layer.kind, str(list(layer.shape)), *_cells(layer.activation),
                *_cells(layer.gradient), ", ".join(layer.flags),
            )
            for layer in self.layers
        ]  # fmt: skip
        if rows:
            short = [name.replace("activation", "of y").replace("gradient", "of dy") for name in of]
            lines += table([("name", "layer", "y", *short, "flags"), *rows])
        return "\n".join(lines)

    def plot(self, path):
        """Writes root mean square and |mean| of activations and gradients, layer by layer, as a picture.

        Dashed are the limits of vanishing and exploding. The format is that of the suffix of `path`. Raises
        ModuleNotFoundError without matplotlib, FileNotFoundError where the folder does not exist.
        """
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"expected matplotlib to draw with, but {error.name} is not installed: pip install "
                f"matplotlib, or print the report"
            ) from None
        if not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(
                f"expected a folder to write into, there is no {Path(path).parent}: make it"
            )
        figure = Figure(figsize=(max(7, min(16, 3 + 0.22 * len(self.layers))), 7), layout="constrained")
        panels = figure.subplots(2, 1, sharex=True)
        for panel, what in zip(panels, ("activation", "gradient")):
            self._draw(panel, what)
        step = math.ceil(len(self.layers) / 60)  # of the names, as many as are legible
        names = [layer.name for layer in self.layers]
        panels[1].set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=7)
        panels[1].set_xlabel("layer, in the order of the calls")
        figure.savefig(path, dpi=110)

    def _draw(self, panel, what):
        points = [(i, getattr(layer, what)) for i, layer in enumerate(self.layers)]
        points = [(i, s) for i, s in points if s is not None and 0 < s.rms < math.inf]
        if points:
            places = [i for i, _ in points]
            panel.plot(places, [s.rms for _, s in points], "o-", color="#0072b2", label="root mean square")
            means = [abs(s.mean) if abs(s.mean) > ROUNDING * s.rms else math.nan for _, s in points]
            panel.plot(places, means, "x", color="#d55e00", label="|mean|")
            reference = _reference(self.layers, what)
            for factor in (self.vanishing, self.exploding):
                panel.axhline(factor * reference, color="black", linestyle="--", linewidth=1)
        for i, layer in enumerate(self.layers):
            if any(what in flag or flag == "dead" for flag in layer.flags):
                panel.axvspan(i - 0.5, i + 0.5, color="#e69f00", alpha=0.3, linewidth=0)
        panel.set(yscale="log", ylabel=f"{what}, in its units", xlim=(-0.5, len(self.layers) - 0.5))
        which = "first" if what == "activation" else "last"
        limits = f"{self.vanishing:g} and {self.exploding:g} times the {which} layer's"
        panel.set_title(f"{what}s; dashed: {limits}; shaded: flagged")
        panel.grid(alpha=0.3)
        if points:
            panel.legend()


def _cells(statistics):
    if statistics is None:
        return "-", "-", "-"
    return f"{statistics.mean:.1e}", f"{statistics.variance:.1e}", f"{statistics.norm:.1e}"


def _reference(layers, what):
    """What limits are relative to: the first layer's activations, the last one's gradients."""
    found = [getattr(layer, what) for layer in layers]
    found = [s.rms for s in found if s is not None and 0 < s.rms < math.inf]
    return (found[0] if what == "activation" else found[-1]) if found else 0.0


def _flags(activation, gradient, first, last, vanishing, exploding, dead):
    flags = []
    for what, statistics, reference in (("activation", activation, first), ("gradient", gradient, last)):
        if statistics is None:
            continue
        if not math.isfinite(statistics.rms) or statistics.rms > exploding * reference > 0:
            flags.append(f"exploding {what}")
        elif 0 < statistics.rms < vanishing * reference:
            flags.append(f"vanishing {what}")
    if activation.zeros >= dead or (gradient is not None and gradient.rms == 0):
        flags.append("dead")
    return tuple(flags)


def _judged(measured, limits):
    layers = [Layer(*row, ()) for row in measured]
    references = [_reference(layers, what) for what in ("activation", "gradient")]
    return tuple(Layer(*row, _flags(*row[-2:], *references, *limits)) for row in measured)


def _projection(output):
    """The default loss: a random projection of everything in the output that has a gradient."""
    found = [y for y in tree_leaves(output) if measurable(y) and y.requires_grad]
    if not found:
        raise ValueError(
            f"expected the model to return a floating-point tensor that requires a gradient, or several, got "
            f"{type(output).__name__}: pass loss=, a function of the output, and parameters or inputs that "
            f"require a gradient"
        )
    generator = torch.Generator().manual_seed(0)
    return sum((torch.randn(y.shape, generator=generator).to(y) * y).double().sum().cpu() for y in found)


def _loss(output, loss):
    y = _projection(output) if loss is None else loss(output)
    if not isinstance(y, torch.Tensor) or y.numel() != 1 or not y.requires_grad:
        got = f"a tensor of shape {list(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
        without = "" if not isinstance(y, torch.Tensor) or y.requires_grad else " without a gradient"
        raise ValueError(
            f"expected loss to return a tensor of one element that requires a gradient, got {got}{without}: "
            f"pass such as loss=lambda output: torch.nn.functional.cross_entropy(output, labels)"
        )
    return y


def _check(loss, vanishing, exploding, dead):
    if loss is not None and not callable(loss):
        raise TypeError(
            f"expected loss to be a function of the model's output, got {type(loss).__name__}: pass such as "
            f"loss=lambda output: torch.nn.functional.cross_entropy(output, labels)"
        )
    for name, number, least, most in (
        ("vanishing", vanishing, 0, 1), ("exploding", exploding, 1, math.inf), ("dead", dead, 0, 1)
    ):  # fmt: skip
        if not isinstance(number, (int, float)) or not least < number <= most:
            raise ValueError(
                f"expected {name} to be a number above {least} and at most {most}, got {number!r}: leave it "
                f"out for the usual limit"
            )


def diagnose(model, *inputs, loss=None, vanishing=1e-3, exploding=1e3, dead=0.99, **options):
    r"""Runs `model(*inputs, **options)` forward and backward, and measures what passes through every layer.

    Of the output y of every layer and of its gradient dy = d loss / d y, over all n elements:
    mean = sum(y) / n, variance = sum((y - mean)^2) / n, norm = sqrt(sum(y^2)), in float64, in the units of y
    and of loss / y. A layer is a call of a module inside which no other module ran, with or without
    parameters; a module that is called twice is listed twice, and one that returns several tensors once for
    each. Of a normreg BatchNorm in training whose kernel ran, y's are computed from the statistics that the
    kernel kept, without reading y: the mean of a channel is bias, its variance weight^2 var / (var + eps).

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
    run. A compiled model is run in eager mode; of DistributedDataParallel, give the `.module`.

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
    ValueError for uninitialized lazy modules, limits out of range, and an output or loss without a gradient,
    and what the model raises.

    Equivalent::

        for module in model.modules():
            module.register_forward_hook(lambda module, inputs, y: (
                print(y.mean(), y.var(correction=0), y.norm()),
                y.register_hook(lambda dy: print(dy.mean(), dy.var(correction=0), dy.norm()))) and None)
        loss(model(*inputs)).backward()

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks"
    (2010); He et al., "Delving Deep into Rectifiers" (2015), arXiv 1502.01852
    """
    check_runs(model, inputs, options, "diagnose")
    _check(loss, vanishing, exploding, dead)
    recorder = Recorder(model)
    with torch.inference_mode(False), torch.enable_grad(), unchanged(model) as copies:
        leaves = {}

        def copy(x):
            """Not a leaf, which could not be changed in place, nor a part of the caller's graph."""
            if x.is_inference():
                return x.clone()
            if not x.requires_grad:
                return copies.of(x)
            leaf, _ = leaves.setdefault(id(x), (copies.of(x.detach()).requires_grad_(), x))
            return leaf.clone()

        inputs, options = tree_map_only(torch.Tensor, copy, (inputs, options))
        try:
            with recorder.following():
                output = model(*inputs, **options)
            y = _loss(output, loss)
            wanted = [p for p in model.parameters() if p.requires_grad] + [
                leaf for leaf, _ in leaves.values()
            ]
            if wanted:
                torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)
        finally:
            recorder.forget()
    limits = (vanishing, exploding, dead)
    return Diagnosis(_judged(recorder.measured(), limits), float(y.detach()), *limits)

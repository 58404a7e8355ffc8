"""A `Diagnosis`: what `diagnose` found, as a table and as a picture."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from normreg.inspection.measurement import Row, Statistics
from normreg.models.naming import counted
from normreg.models.tables import Table, Tables


@dataclass(frozen=True)
class Layer:
    """A call of a module inside which no other module ran. It has a `Layer` for each tensor it returns."""

    name: str
    kind: str
    shape: tuple[int, ...]
    activation: Statistics
    gradient: Statistics | None  # of the loss with respect to the output; None where none reaches it
    flags: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Diagnosis(Tables):
    """What `diagnose` found: iterates over `layers`, in the order of their calls. Printed, it is a table.

    Attributes:
        layers: the calls, each with name, kind, shape, activation, gradient and flags.
        loss: the value of the loss.
        vanishing, exploding, dead: the limits that the flags were given by.
    """

    layers: tuple[Layer, ...]
    loss: float
    vanishing: float
    exploding: float
    dead: float

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @property
    def flagged(self) -> tuple[Layer, ...]:
        """The layers with any flag."""
        return tuple(layer for layer in self.layers if layer.flags)

    def tables(self) -> Iterable[Table]:
        heading = f"{counted(self.layers)}, {len(self.flagged)} flagged; loss {self.loss:.4g}"
        of = [f"{of} {what}" for of in ("y", "dy") for what in ("mean", "var", "norm")]
        rows = [
            (
                *(layer.name, layer.kind.removeprefix("torch.nn."), str(list(layer.shape))),
                *_cells(layer.activation),
                *_cells(layer.gradient),
                ", ".join(layer.flags),
            )
            for layer in self.layers
        ]
        return [Table(heading, ("name", "layer", "shape of y", *of, "flags"), rows)]

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes root mean square and |mean| of activations and gradients, a row a layer, as a picture.

        Dashed lines are the limits of vanishing and exploding. Of 400 layers and fewer all are named, below
        the prefix that they share. The format is that of the suffix of `path`.
        Raises ModuleNotFoundError without matplotlib, FileNotFoundError where the folder does not exist.
        """
        try:
            from normreg.inspection import picture
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"expected matplotlib to draw with, but {error.name} is not installed: pip install "
                f"matplotlib, or print the report"
            ) from None
        if not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(
                f"expected a folder to write into, there is no {Path(path).parent}: make it"
            )
        picture.draw(self, path)


def _cells(statistics: Statistics | None) -> tuple[str, str, str]:
    if statistics is None:
        return "-", "-", "-"
    mean, variance, norm = map(_shortened, (statistics.mean, statistics.variance, statistics.norm))
    return mean, variance, norm


def _shortened(number: float) -> str:
    """The number in two digits, without leading zeros in the exponent: 1.2e-7."""
    return re.sub(r"(e[+-])0", r"\1", f"{number:.1e}")


def reference(layers: Iterable[Layer], what: str) -> float:
    """The root mean square that limits are relative to: the first activation's, the last gradient's."""
    found = [getattr(layer, what) for layer in layers]
    found = [s.rms for s in found if s is not None and 0 < s.rms < math.inf]
    return (found[0] if what == "activation" else found[-1]) if found else 0.0


def _flags(
    activation: Statistics,
    gradient: Statistics | None,
    first: float,
    last: float,
    vanishing: float,
    exploding: float,
    dead: float,
) -> tuple[str, ...]:
    """The flags of a layer; first and last are the references of activations and gradients."""
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


def judged(rows: Sequence[Row], limits: tuple[float, float, float]) -> tuple[Layer, ...]:
    """The layers with their flags; `limits` are those of vanishing, exploding and dead."""
    layers = [
        Layer(
            *(row.name, row.kind, row.shape, row.activation.statistics()),
            None if row.gradient is None else row.gradient.statistics(),
            (),
        )
        for row in rows
    ]
    references = reference(layers, "activation"), reference(layers, "gradient")
    return tuple(
        replace(layer, flags=_flags(layer.activation, layer.gradient, *references, *limits))
        for layer in layers
    )

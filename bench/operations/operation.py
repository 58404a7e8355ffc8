"""The parts of a declaration: what bench and tests have to know about an operation, each once.

Cases and shapes are text, written as they are printed: "fp32 4x40x64x64 channels_last" (`case.cases_of`).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

import normreg

from .case import DTYPES, TOLERANCES, cases_of
from .dropping import dropped

PROOFS = ("ledger", "static", "instructions", "exactness", "host", "speed")


@dataclass(frozen=True)
class Function:
    """An example of a function: how it is called, and the shapes of its inputs.

    Its key in a declaration begins with the function's name; "layer_norm without bias" is a variant. `call`
    takes a library's function, the inputs, and options, which it passes on; a random function's include p.
    """

    call: Callable
    shapes: tuple  # x first; few elements, for finite differences
    name: str = ""  # the function's, which the declaration's key gives
    draws: bool = False  # takes a generator; the operation says so
    launches: bool = True  # kernels of ours, which all functions do whose operation has kernels

    def __call__(self, library, *inputs, **options):
        return self.call(getattr(library, self.name), *inputs, **options)

    def inputs(self, device, dtype=torch.float32):
        return [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in self.shapes]

    def seeded(self, *inputs):
        """Calls normreg's function, with the same mask every time."""
        generator = torch.Generator(inputs[0].device).manual_seed(4) if self.draws else None
        ours = getattr(normreg.functional, self.name, None) or getattr(normreg, self.name)
        return self.call(ours, *inputs, **(dict(generator=generator) if self.draws else {}))

    def shapes_for(self, shape, over):
        """The shapes of all inputs for this one of x: a residual has x's, parameters a row's or channels'."""
        first = self.shapes[0]
        if over == "samples":
            sizes = {1: 1} | dict(zip(first, shape, strict=True))
            return [tuple(sizes[size] for size in s) for s in self.shapes]
        of_parameters = shape[1:2] if over == "channels" else shape
        return [shape if s == first else of_parameters[len(of_parameters) - len(s) :] for s in self.shapes]


@dataclass(frozen=True)
class Layer:
    """An example of a layer: its constructor's arguments. Its key in a declaration begins with its class."""

    arguments: tuple
    sample: tuple  # shape of one
    options: dict = field(default_factory=dict)
    module: Callable = lambda layer: layer  # makes of the layer what is called with x alone
    kernels: str = ""  # what their names begin with, where it is not what the operation's do
    kind: str = ""  # the class, which the declaration's key gives
    draws: bool = False  # the operation says so

    def make(self, library=normreg):
        return self.module(getattr(library, self.kind)(*self.arguments, **self.options))


@dataclass(frozen=True)
class Smoke:
    """A size at which `bench smoke` calls an example; all of them together reach each kernel."""

    dtypes: str  # "bf16 fp32"
    shape: str  # of x; of an operation over rows the number of columns is enough
    example: str = ""  # the name of a Function, where it is not the operation's
    options: dict = field(default_factory=dict)  # which its call takes
    channels_last: bool = False


def replaced(layer):
    """torch's layer, made normreg's."""
    normreg.replace(layer)
    return layer


@dataclass(frozen=True)
class Measured:
    """An operation's layer, what it moves at least, and the cases of each part of the benchmark."""

    torch_layer: Callable  # (case, **options of device and dtype) -> what torch has to offer
    passes: dict  # direction -> how many tensors of the input's size it moves at least
    small: str  # a case for tests
    static: str  # in every dtype; one shape for each tile that `tiling` can choose
    host: str
    speed: dict[str, str]  # by where the shapes occur
    ledger: str = ""  # of about 2^23 elements, multiples of 132 rows where rows are added up
    instructions: str = ""  # of about 2^20 elements, that reach every kernel of `static`
    exactness: str = ""  # of about 2^17 elements
    # (a tensor of the input's shape, case) -> it as [number, elements], what is normalised together in a row
    together: Callable | None = None
    fuse: Callable = replaced  # torch's layer -> normreg's, in place
    more_passes: Callable = lambda case, direction: 0  # tensors that only some cases move
    masked_error: Callable | None = None  # (reference, layer, x, dy, y, gradients), where results are random
    name: str = ""  # the operation's

    def of(self, name):
        """The same with cases in place of texts."""
        found = {proof: tuple(self._cases(name, proof)) for proof in PROOFS}
        return replace(self, name=name, small=cases_of(name, self.small)[0], **found)

    def _cases(self, name, proof):
        texts = getattr(self, proof)
        if proof == "static":
            texts = {"": ", ".join(f"{dtype} {text}" for dtype in DTYPES for text in texts.split(", "))}
        for origin, text in (texts if isinstance(texts, dict) else {"": texts}).items():
            yield from cases_of(name, text, origin) if text else ()

    def layer(self, library, case, **options):
        """The layer of a case, of torch.nn or normreg, in its mode."""
        layer = self.torch_layer(case, **options).train(case.training)
        return self.fuse(layer) if library is normreg else layer

    def tolerance(self, case):
        """The largest error that is agreement."""
        return TOLERANCES[case.dtype]

    def least_bytes(self, case, direction):
        """What any implementation moves: every tensor of the input's size once; parameters are left out."""
        return (self.passes[direction] + self.more_passes(case, direction)) * case.bytes


@dataclass(frozen=True)
class Operation:
    """A declaration: bench and tests know nothing else about an operation."""

    name: str
    kernels: str  # what the names of its kernels begin with; empty where torch's operators are all it runs
    functions: dict[str, Function]
    layers: dict[str, Layer] = field(default_factory=dict)
    smoke: tuple[Smoke, ...] = ()
    measured: Measured | None = None
    # "rows" or "channels": where the mean is taken, and what parameters have a value for; of "samples", they
    # have dimensions of x's sizes in an example, which are all different there
    over: str = ""
    formulas: dict[str, Callable] = field(default_factory=dict)  # what torch has no function for
    kept: Callable | None = None  # (x, training) -> bytes of statistics that a backward needs
    random: bool = False  # its functions draw, and take a generator and p
    problem: Callable | None = None  # (make, *sizes) -> smoke's Problem, where it is no call of a function
    masked: Callable | None = (
        None  # (function's name, mask) -> it in torch's operations, if not a formula's `drop`
    )

    def examples(self):
        """{name: Function}, each with the name of its function."""
        return {
            key: replace(one, name=first_word(key), draws=self.random, launches=bool(self.kernels))
            for key, one in self.functions.items()
        }

    def layer_examples(self):
        """{name: Layer}, each with its class."""
        given = dict(draws=self.random)
        return {
            key: replace(one, kind=first_word(key), kernels=one.kernels or self.kernels, **given)
            for key, one in self.layers.items()
        }

    def under_mask(self, name, keep):
        """A random function in torch's operations, which keeps what this mask says."""
        if self.masked:
            return self.masked(name, keep)
        return functools.partial(self.formulas[name], drop=dropped(keep))


def first_word(key):
    return key.split()[0].rstrip(",")

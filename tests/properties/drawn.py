"""What hypothesis draws for the functions: tensors of every shape, layout and dtype, and how many examples.

`NORMREG_EXAMPLES=5000 pytest tests/properties` draws so many for each test, others at each run.
"""

import os
from dataclasses import dataclass, field, fields

import pytest
import torch

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

WANTED = os.environ.get("NORMREG_EXAMPLES")
hypothesis.settings.register_profile(
    "normreg",
    max_examples=int(WANTED or 200),
    derandomize=WANTED is None,
    database=None,
    deadline=None,
    print_blob=False,
    phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    # `device` and the like are the same for every example; shapes are filtered
    suppress_health_check=[*hypothesis.HealthCheck],
)
hypothesis.settings.load_profile("normreg")

HALVES = torch.bfloat16, torch.float16
DTYPES = (*HALVES, torch.float32, torch.float64)
SIZES = 1, 2, 3, 7, 8, 17, 64, 129
MOST = 500  # elements: a program of the interpreter takes milliseconds

dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**16)


@dataclass(frozen=True, repr=False)
class Recipe:
    """A tensor that can be made again, alike in all but its address."""

    shape: tuple
    dtype: torch.dtype
    seed: int = 0
    order: tuple = ()  # of the dimensions in memory; empty for the logical one
    steps: tuple = ()  # of each dimension in memory
    offset: int = 0
    expanded: tuple = ()  # whether a dimension's stride is 0
    mean: float = 0.0
    scale: float = 1.0
    requires_grad: bool = True
    positive: bool = False

    def __repr__(self):
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return f"Recipe({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def _repr_pretty_(self, printer, cycle):
        printer.text(repr(self))

    def make(self, device, dtype=None):
        """The tensor, or its values in another dtype."""
        dims = len(self.shape)
        order, steps = self.order or tuple(range(dims)), self.steps or (1,) * dims
        lying = [1 if self.expanded and self.expanded[dim] else self.shape[dim] for dim in order]
        padded = [size * step for size, step in zip(lying, steps, strict=True)]
        elements = torch.Size(padded).numel() + self.offset
        values = torch.randn(elements, generator=torch.Generator().manual_seed(self.seed))
        values = values.abs() + 0.1 if self.positive else values
        values = (values * self.scale + self.mean).to(self.dtype).to(device, dtype)
        tensor = values[self.offset :].view(padded)
        for dim, step in enumerate(steps):
            tensor = tensor[(slice(None),) * dim + (slice(None, None, step),)]
        tensor = tensor.permute([order.index(dim) for dim in range(dims)]).expand(self.shape)
        return tensor.detach().requires_grad_(self.requires_grad)


@st.composite
def shapes(draw, least=1, most=5, odd=frozenset()):
    """A shape of so many dimensions, and of few elements."""
    least, sizes = (0, (0, *SIZES)) if "shape" in odd else (least, SIZES)
    shape = []
    for _ in range(draw(st.integers(least, most))):
        room = MOST // max(1, torch.Size(shape).numel())
        shape.append(draw(st.sampled_from([size for size in sizes if size <= room] or [1])))
    return tuple(shape)


@st.composite
def recipes(draw, shape, dtype, requires_grad=None, expand=True):
    """A tensor of this shape, in the layouts that views have; mostly contiguous."""
    dims = len(shape)
    given = dict(shape=tuple(shape), dtype=dtype, seed=draw(seeds))
    given["requires_grad"] = draw(st.booleans()) if requires_grad is None else requires_grad
    kind = draw(st.sampled_from(["contiguous", "contiguous", "channels_last", "permuted", "any"]))
    if kind == "channels_last" and dims >= 3:
        given["order"] = (0, *range(2, dims), 1)
    elif kind in ("permuted", "any"):
        given["order"] = tuple(draw(st.permutations(range(dims))))
    if kind == "any":
        given["steps"] = tuple(draw(st.lists(st.integers(1, 2), min_size=dims, max_size=dims)))
        given["offset"] = draw(st.integers(0, 3))
        if expand:
            given["expanded"] = tuple(draw(st.lists(st.booleans(), min_size=dims, max_size=dims)))
    given["mean"], given["scale"] = draw(st.sampled_from([(0.0, 1.0), (0.0, 1.0), (30.0, 1.0), (0.0, 1e-3)]))
    return Recipe(**given)


@st.composite
def oddities(draw, *names):
    """What is odd about a call: mostly nothing."""
    if draw(st.integers(0, 4)) < 3:
        return frozenset()
    return draw(st.frozensets(st.sampled_from(names), min_size=1, max_size=2))


@st.composite
def parameters(draw, names, shape, dtype, odd=frozenset(), may_be_none=True):
    """{name: recipe or None} of parameters of x's dtype, or of float32 beside 16 bits."""
    given = draw(st.sampled_from([dtype, torch.float32])) if dtype in HALVES else dtype
    found = {}
    for name in names:
        if may_be_none and draw(st.integers(0, 3)) == 0:
            found[name] = None
            continue
        own = draw(dtypes) if "dtype" in odd else given
        own_shape = draw(st.sampled_from([(*shape, 1), shape[1:], (3,)])) if "parameter" in odd else shape
        found[name] = draw(recipes(own_shape, own))
    return found


@dataclass(frozen=True)
class Call:
    """A call of a function: tensors to differentiate by, buffers that it may change, and the rest."""

    tensors: dict
    options: dict
    buffers: dict = field(default_factory=dict)

    def made(self, device, dtype=None):
        """(tensors, buffers), floating ones in another dtype if one is given."""
        return [
            {
                name: recipe if recipe is None else recipe.make(device, dtype)
                for name, recipe in recipes.items()
            }
            for recipes in (self.tensors, self.buffers)
        ]

    def widest(self):
        """The widest dtype among the tensors."""
        return max(
            (r.dtype for r in self.tensors.values() if r is not None), key=lambda dtype: dtype.itemsize
        )

"""What a compiler's graph holds in the place of a call of an operator: the operator, or launches of kernels.

torch.compile records operators, and exported programs hold them. AOTAutograd, which prepares graphs for
Inductor and AOTInductor, asks the rule that is here: by that a graph holds the launches themselves, each a
`triton_kernel_wrapper_functional` of the kernel's twin (`normreg.kernels.twins`). So Inductor sees what is
read and written, and AOTInductor's packages have the kernels in them. It is what `torch.library.triton_op`
does, for launchers that decide by Python what is launched.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch._inductor import config
from torch._library.triton import triton_ops_to_kernels
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.export import _trace
from torch.fx.experimental import proxy_tensor
from torch.utils import _pytree as pytree

from normreg import kernels
from normreg.kernels import cpu, launch
from normreg.ops import untranslated

# processes in which Inductor compiles import kernels by name, which finds no copy that `normreg.hub` wrote
AS = "kernels" if __name__.startswith("normreg.") else "operators"


class recorded_as:
    """Says what torch.compile's graphs hold for our operations: "kernels", the default, or "operators".

    With "kernels" Inductor launches our kernels itself, and AOTInductor packs them. With "operators" it calls
    `torch.ops.normreg`, which it does in either case where a size is symbolic: from the second batch size on.
    The results are the same bits where addresses are multiples of 16 bytes, as torch allocates them;
    elsewhere sums may be added in another order. Functions that are compiled already stay as they are.

    A call changes it from then on, for all threads; in a with statement it is what it was before afterwards::

        with normreg.recorded_as("operators"):
            y = torch.compile(model)(x)

    Raises ValueError for another kind. Source: https://docs.pytorch.org/docs/stable/library.html, triton_op
    """

    def __init__(self, kind: str) -> None:
        global AS
        if kind not in ("kernels", "operators"):
            raise ValueError(
                f"expected 'kernels' or 'operators', got {kind!r}: pass 'kernels' for launches that Inductor "
                f"makes, 'operators' for calls of torch.ops.normreg"
            )
        self.before, AS = AS, kind

    def __enter__(self) -> "recorded_as":
        return self

    def __exit__(self, *_: Any) -> None:
        global AS
        AS = self.before


class Fingerprint:
    """What torch's caches of compiled graphs tell our kernels by, as if it were a Triton function.

    A graph that they find has launches in it, with tiles and grids of the version that recorded them.
    """

    __name__ = "normreg"

    def fn(self) -> None:
        """Calls nothing whose source would have to be known."""

    @property
    def src(self) -> str:
        return f"# {AS} {digest_of_kernels()}"


@functools.cache
def digest_of_kernels() -> str:
    """A digest of the source of kernels, and of what decides their launches and derivatives."""
    folders = kernels.__path__[0], Path(__file__).parent
    files = [file for folder in folders for file in sorted(Path(folder).rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def register(library: torch.library.Library, name: str, run: Callable[..., Any]) -> None:
    """Makes graphs hold for the operator of this name what its rule says. run: computes its results."""
    name = f"{library.ns}::{name}"
    torch.library.register_torch_dispatch(name, FunctionalTensorMode, rule_of(run), lib=library)
    triton_ops_to_kernels[name] = [Fingerprint()]


def rule_of(run: Callable[..., Any]) -> Callable[..., Any]:
    def rule(mode: FunctionalTensorMode, operator: Any, types: Any, inputs: Any, options: Any) -> Any:
        # asked here, because torch wraps an operator that updates its arguments before it asks the table
        decomposition = untranslated.asked(decompositions().get(operator), inputs, options)
        if decomposition is not None:
            with mode:
                return decomposition(*inputs, **options)
        if why_opaque(inputs):
            return mode.__torch_dispatch__(operator, types, inputs, options)
        with mode, launch.recorded():
            return run(*inputs, **options)

    return rule


def why_opaque(inputs: Any) -> str | None:
    """Why the graph holds the operator, and not its kernels."""
    if AS != "kernels":
        return "normreg.recorded_as('operators') says so"
    if cpu.KERNELS == "interpreter":
        return "kernels are interpreted"
    if config.triton_kernel_default_layout_constraint != "needs_fixed_stride_order":
        return "Inductor may change the strides of what kernels take"
    if _trace.custom_triton_ops_decomposition_disabled():
        return "an exported program holds operators"
    for value in pytree.tree_leaves(inputs):
        sizes = (*value.shape, *value.stride()) if isinstance(value, torch.Tensor) else (value,)
        if any(isinstance(size, (torch.SymInt, torch.SymFloat)) for size in sizes):
            return "a size or number is symbolic"
    return None


def decompositions() -> Mapping[Any, Callable[..., Any]]:
    """The table that the trace was given which is being made, as by `run_decompositions(table)`."""
    trace = proxy_tensor.get_proxy_mode()
    if trace is None:
        return {}
    try:
        return trace.decomposition_table
    except AttributeError:  # before torch 2.12
        table: Mapping[Any, Callable[..., Any]] = vars(proxy_tensor)["CURRENT_DECOMPOSITION_TABLE"]
        return table

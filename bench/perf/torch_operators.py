"""What torch's operators move: each reads every tensor that it is given once, and writes each result once."""

from math import prod

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ALLOCATIONS = ("aten::empty", "aten::new_empty")
VIEWS = ("aten::_unsafe_view",)  # those that do not say so


def moves_memory(schema):
    """Whether an operator writes anything: views and allocations do not."""
    writes = schema.is_mutable or any(
        returned.alias_info is None and "Tensor" in str(returned.type) for returned in schema.returns
    )
    return writes and not schema.name.startswith((*ALLOCATIONS, *VIEWS))


def bytes_of(values):
    """The bytes of all tensors among values; what a tensor repeats counts once."""
    tensors = [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]
    return sum(
        prod(size for size, step in zip(t.shape, t.stride()) if step) * t.element_size() for t in tensors
    )


class Operators(TorchDispatchMode):
    """Notes torch's operators that move memory in `moved`, as (name, bytes)."""

    def __init__(self):
        super().__init__()
        self.moved = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if moves_memory(function._schema):
            self.moved.append((function._schema.name, bytes_of((args, kwargs, result))))
        return result

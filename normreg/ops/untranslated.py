"""What torch.onnx finds of an operator of ours that it was given no ONNX nodes for.

It looks every operator that is in no table of its caller's up in torch's own table of decompositions. So what
it takes from there says that `normreg.onnx_table()` was not passed, or that the operator has no nodes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._decomp import decomposition_table, meta_table

# what operators compute that were given none of the arguments that they update, by operators that update none
WITHOUT_UPDATES: dict[Any, Callable[..., Any]] = {}


class Untranslated:
    """The entry of an operator in torch's table, and its key there.

    It decomposes nothing: traces record the operator. The table has the operator only while torch.onnx
    exports, because DTensor, and Inductor where CI is set, take any entry for a decomposition.
    """

    def __init__(self, operator: Any) -> None:
        self.operator = operator

    def __hash__(self) -> int:
        return hash(self.operator)

    def __eq__(self, other: object) -> bool:
        return other is self or (other is self.operator and torch.onnx.is_in_onnx_export())

    def __getattr__(self, name: str) -> Any:
        """Answers torch.onnx, which takes the key for an operator, as the operator does."""
        return getattr(self.operator, name)

    def in_onnx(self, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Callable[..., Any]:
        """What torch.onnx is to record in place of this call; raises RuntimeError where that is nothing."""
        name, arguments = self.operator.name(), self.operator._schema.arguments
        given = dict(zip((a.name for a in arguments), inputs)) | dict(options)
        changed = [a.name for a in arguments if a.is_write]
        if not changed:
            raise RuntimeError(
                f"expected {name} in the custom_translation_table of torch.onnx.export, got none: pass "
                f"custom_translation_table=normreg.onnx_table()"
            )
        updated = [name for name in changed if given.get(name) is not None]
        if updated or self.operator not in WITHOUT_UPDATES:
            raise RuntimeError(
                f"expected a layer in evaluation for ONNX, which updates nothing, got {name} in training, "
                f"with {', '.join(updated or changed)}: call model.eval() before torch.onnx.export, or make "
                f"the layer with track_running_stats=False"
            )
        return WITHOUT_UPDATES[self.operator]


def enter(operator: Any, fake: Callable[..., Any]) -> None:
    """Puts an operator into torch's tables, with its fake, which FakeTensorMode prefers to it."""
    entry: Any = Untranslated(operator)
    decomposition_table[entry], meta_table[entry] = entry, fake


def asked(decomposition: Any, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """The decomposition that a trace was given for a call, or None."""
    if isinstance(decomposition, Untranslated):
        return decomposition.in_onnx(inputs, options)
    return decomposition

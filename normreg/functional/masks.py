"""`dropout_mask`: computes the masks that are never stored, for debugging and tests."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from normreg import functional
from normreg.ops import seed

DROPOUTS = (
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
    functional.drop_path,
)
SUMS = (functional.dropout_add, functional.drop_path_add)
NORMS = (functional.dropout_add_layer_norm, functional.dropout_add_rms_norm)
FUNCTIONS = (*DROPOUTS, *SUMS, *NORMS, functional.bias_act_dropout)


@contextlib.contextmanager
def _generator_kept(device: torch.device, generator: torch.Generator | None) -> Iterator[None]:
    """Restores the state of the generator, by default the device's, after the with block."""
    if generator is None and device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
    elif generator is None:
        generator = torch.default_generator
    state = generator.get_state()
    try:
        yield
    finally:
        seed.handle(generator).set_state(state)


def dropout_mask(function: Callable[..., Any], input: Tensor, *arguments: Any, **options: Any) -> Tensor:
    r"""Says which elements `function(input, *arguments, **options)` would keep if it were called now.

    Args:
        function: one of `normreg.functional`'s dropout, dropout1d/2d/3d, alpha_dropout,
            feature_alpha_dropout, drop_path, dropout_add, drop_path_add, dropout_add_layer_norm,
            dropout_add_rms_norm and bias_act_dropout.
        input, arguments, options: what the function is called with. Input is not changed, even by
        inplace=True.

    Returns a bool tensor of input's shape, True where an element is kept. The generator is set back to its
    state, so that the call itself, made next, has this mask. It is the mask of eager mode: on a GPU that of a
    compiled graph comes from another seed. Raises ValueError for another function, TypeError for arguments
    that the function does not take, and what it raises.

    Equivalent::

        keep = function(torch.ones_like(input)) != function(torch.zeros_like(input))    # from one state
    """
    if function not in FUNCTIONS:
        raise ValueError(
            f"expected one of normreg.functional's {', '.join(f.__name__ for f in FUNCTIONS)}, got "
            f"{function!r}: pass the function itself, such as normreg.functional.dropout; a layer's mask is "
            f"that of the function that it calls"
        )
    bound = inspect.signature(function).bind(input, *arguments, **options)
    bound.apply_defaults()
    given = bound.arguments
    generator = given["generator"]
    run: Callable[[Tensor], Tensor]
    if function in DROPOUTS:
        _, *rest = ((name, value) for name, value in given.items() if name != "inplace")
        run = functools.partial(function, **dict(rest))
    else:
        run = _sum_with_the_same_mask(function, given)
    with torch.no_grad():
        results = []
        for value in (1, 0):
            with _generator_kept(input.device, generator):
                results.append(run(torch.full_like(input, value, requires_grad=False)))
    return results[0] != results[1]


def _sum_with_the_same_mask(
    function: Callable[..., Any], given: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    """A function of x that draws the same mask: drop_path_add, or dropout_add over rows of the same length.

    The length is that of a layer scale of ones.
    """
    _, x = next(iter(given.items()))
    row_scale, rows = given.get("row_scale"), None
    if function in NORMS:
        rows = torch.Size(given["normalized_shape"]).numel()
    elif given.get("layer_scale") is not None or given.get("bias") is not None:
        rows = x.shape[-1]
    elif row_scale is not None:
        rows = math.prod(x.shape[row_scale.dim() :])
    options = dict(training=given["training"], generator=given["generator"])
    if rows is not None:
        options["layer_scale"] = torch.ones(rows, dtype=x.dtype, device=x.device)
    if function is functional.drop_path_add:
        options |= dict(drop_prob=given["drop_prob"])
        return lambda x: function(x, torch.zeros_like(x), **options)

    def run(x: Tensor) -> Tensor:
        flat = x if rows is None else x.reshape(-1, rows)
        return functional.dropout_add(flat, torch.zeros_like(flat), given["p"], **options).view(x.shape)

    return run

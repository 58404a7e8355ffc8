"""`l2_penalty`: checks the parameters, chooses the path, calls the operation."""

import math
import numbers

import torch

from normreg.functional import dispatch
from normreg.ops.l2_penalty import in_torch
from normreg.ops.l2_penalty import l2_penalty as _l2_penalty


def check_weight_decay(weight_decay):
    if not isinstance(weight_decay, numbers.Real):
        raise TypeError(
            f"expected weight_decay to be a number, got {type(weight_decay).__name__}: pass a float, such as "
            f"1e-4"
        )
    if not 0 <= weight_decay < math.inf:  # NaN, too
        raise ValueError(
            f"expected weight_decay to be finite and at least 0, got {weight_decay}: 0 turns it off, and "
            f"AdamW's usual value is 0.01"
        )


def _named(parameters):
    """[(how an error names it, parameter)] of what the caller gave."""
    if isinstance(parameters, torch.Tensor):
        parameters = [parameters]
    elif isinstance(parameters, torch.nn.Module):
        raise TypeError(
            f"expected parameters, got the module {type(parameters).__name__}: pass its .parameters() or "
            f".named_parameters()"
        )
    elif isinstance(parameters, dict):
        parameters = parameters.items()
    try:
        given = list(parameters)
    except TypeError:
        raise TypeError(
            f"expected an iterable of tensors or of (name, tensor) pairs, got {type(parameters).__name__}: "
            f"pass model.parameters() or model.named_parameters()"
        ) from None
    if not given:
        raise ValueError(
            "expected at least one parameter, got an empty iterable: pass model.parameters() anew at every "
            "call, because a generator that was used is empty"
        )
    pairs = []
    for position, entry in enumerate(given):
        if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str):
            pairs.append((f"parameter {entry[0]!r}", entry[1]))
        else:
            pairs.append((f"parameter {position}", entry))
    return pairs


def _checked(parameters):
    """The tensors among what the caller gave, all of which they must be."""
    pairs = _named(parameters)
    first_name, first = pairs[0]
    for name, tensor in pairs:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"expected {name} to be a tensor, got {type(tensor).__name__}: pass model.parameters() or "
                f"model.named_parameters()"
            )
        if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
            raise ValueError(
                f"expected {name} to exist, got one that its layer's first call completes: call the model "
                f"once before"
            )
        if not tensor.is_floating_point():
            raise TypeError(
                f"expected {name} to be of a floating-point dtype, got {tensor.dtype}: leave it out, "
                f"or convert it"
            )
        if tensor.device != first.device:
            raise ValueError(
                f"expected all parameters on one device, got {first_name} on {first.device} and {name} on "
                f"{tensor.device}: add up the penalties of each device, moved to one"
            )
    return [tensor for _, tensor in pairs]


def l2_penalty(parameters, weight_decay):
    r"""Half of weight_decay times the sum of the squares of all parameters: a term to add to a loss.

    y = weight_decay / 2 * sum_i sum w_i^2, with the gradient weight_decay * w_i.

    Args:
        parameters: an iterable of tensors or of (name, tensor) pairs, such as `model.parameters()` or
            `model.named_parameters()`, of any shapes, layouts and floating-point dtypes, on one device; or
            one tensor, as `torch.nn.utils.clip_grad_norm_` takes it. A tensor given twice counts twice.
        weight_decay: a finite number of at least 0.

    Returns a scalar: float32, float64 where a parameter is. Sums are in float32 or wider whatever the dtypes,
    and the same at every call. Gradients have the dtypes and layouts of the parameters; those of one dtype
    share one buffer. Where the kernel does not apply (`normreg.functional.dispatch`), this is the equivalent.

    Under `torch.optim.SGD` and `torch.optim.Adam` the step is that of the optimizer's own `weight_decay`,
    which adds the same gradient. It is not that of `torch.optim.AdamW`, which shrinks each weight by
    lr * weight_decay beside a step that does not contain it.
    Gradient clipping sees the penalty's gradient, but not the optimizer's `weight_decay`.

    Raises TypeError for what is no number, tensor or floating-point dtype, and ValueError for a negative or
    non-finite weight_decay, no parameters, and parameters on several devices; the error names the parameter.

    Equivalent::

        y = weight_decay / 2 * sum(w.square().sum() for w in parameters)

    Source: Krogh and Hertz, "A Simple Weight Decay Can Improve Generalization" (1991); Loshchilov and Hutter,
    "Decoupled Weight Decay Regularization" (2019), arXiv 1711.05101, on Adam;
    https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
    """
    check_weight_decay(weight_decay)
    tensors = _checked(parameters)
    if dispatch.l2_penalty(tensors):
        return in_torch(tensors, weight_decay)
    return _l2_penalty(tensors, weight_decay)

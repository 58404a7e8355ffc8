"""BatchNorm with what follows it in residual blocks, in the launches of BatchNorm."""

from normreg.functional import dispatch
from normreg.ops import batch_norm as _batch_norm
from normreg.ops import batch_norm_act as _batch_norm_act
from normreg.ops.activations import activation_in_torch, check_activation


def batch_norm_act(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5,
    *, act="relu", residual=None, negative_slope=0.01, num_batches_tracked=None,
):  # fmt: skip
    r"""`batch_norm`, then the sum with a residual, then an activation, in the launches of `batch_norm` alone.

    y = act(batch_norm(x) + residual). The kernels read the residual and nothing else more than those of
    `batch_norm` do. The backward computes the activation's input from x once more; beside `batch_norm`'s,
    nothing is kept for it. With a residual that is one bit an element for relu, relu6 and leaky_relu, and
    for the other activations the residual itself.

    Args:
        input, running_mean, running_var, weight, bias, training, momentum, eps, num_batches_tracked: those of
            `batch_norm`.
        act: None, "relu", "relu6", "leaky_relu", "silu", "gelu", "gelu_tanh" (`F.gelu(approximate="tanh")`)
            or "hardswish".
        residual: of input's shape and dtype, any strides, or None.
        negative_slope: of leaky_relu.

    Returns a tensor of input's shape and dtype, channels-last where input is, else contiguous. Raises
    ValueError for another act, and what `batch_norm` and torch's sum raise. Where the kernel does not apply
    (`normreg.functional.dispatch`), as for a residual of another shape or dtype, this is the equivalent
    below.

    Equivalent::

        y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        y = F.relu(y + residual)    # and so on

    Sources: He et al., "Deep Residual Learning" (2015), arXiv 1512.03385;
    https://docs.pytorch.org/docs/stable/nn.functional.html
    """
    check_activation(act)
    tracked = num_batches_tracked if training else None
    statistics, options = (running_mean, running_var), (training, momentum, eps)
    if not dispatch.batch_norm_act(
        input, residual, act, negative_slope, *statistics, weight, bias, *options, tracked
    ):
        return _batch_norm_act.batch_norm_act(
            input, weight, bias, residual, act, negative_slope, *statistics, tracked, *options
        )
    y = _batch_norm.in_torch(input, *statistics, weight, bias, *options, tracked)
    return activation_in_torch(y if residual is None else y + residual, act, negative_slope)

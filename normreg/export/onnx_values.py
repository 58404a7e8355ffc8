"""What the ONNX nodes of several operators consist of. `op` makes nodes of the version that was asked for."""

import math

import numpy
import onnx_ir

DOUBLE, FLOAT = onnx_ir.DataType.DOUBLE, onnx_ir.DataType.FLOAT
HAVE_RMS_NORMALIZATION, HAVE_GROUP_NORMALIZATION, HAVE_GELU, HAVE_FLOAT8 = 23, 21, 20, 19  # opsets


def compute_dtype(dtype):
    return DOUBLE if dtype == DOUBLE else FLOAT


def cast(op, x, dtype):
    """x in the dtype; None stays None."""
    if x is None or x.dtype == dtype:
        return x
    y = of_dtype(op.Cast(x, to=dtype), dtype)
    y.shape = x.shape
    return y


def of_dtype(value, dtype):
    """The value, or the first of several, marked with its dtype."""
    value = value[0] if isinstance(value, (list, tuple)) else value
    value.dtype = dtype
    return value


def one_dtype(*values):
    """The dtype of all values, None aside, or the dtype to compute in where there are several."""
    dtypes = {getattr(value, "dtype", value) for value in values if value is not None}
    return dtypes.pop() if len(dtypes) == 1 else DOUBLE if DOUBLE in dtypes else FLOAT


def filled(op, number, like, dims, dtype):
    """The number in each place of `dims`, a slice of the dimensions of `like`."""
    sizes = (None,) if like.shape is None else [*like.shape][dims]
    if all(isinstance(size, int) for size in sizes):
        numbers = onnx_ir.tensor(numpy.full(sizes, number, dtype.numpy()))
        return of_dtype(op.Constant(value=numbers), dtype)
    one = onnx_ir.tensor([number], dtype=compute_dtype(dtype))
    y = op.ConstantOfShape(sizes_of(op, like, dims), value=one)
    return cast(op, of_dtype(y, compute_dtype(dtype)), dtype)


def sizes_of(op, x, dims):
    start = {} if dims.start is None else {"start": dims.start}
    return op.Shape(x, **start) if dims.stop is None else op.Shape(x, **start, end=dims.stop)


def axes(op, numbers):
    return op.Constant(value_ints=[*numbers])


def beside(op, x, dims, rank):
    """x, of `rank` dimensions, with `dims` of size 1 behind them."""
    return op.Unsqueeze(x, axes(op, range(rank, rank + dims))) if dims else x


def rms_normalized(op, x, weight, dims, eps):
    """RMSNormalization in x's dtype."""
    if op.version >= HAVE_RMS_NORMALIZATION:
        weight = filled(op, 1.0, x, slice(-dims, None), x.dtype) if weight is None else weight
        return of_dtype(op.RMSNormalization(x, weight, axis=-dims, epsilon=eps), x.dtype)
    square = op.ReduceMean(op.Mul(x, x), axes(op, range(-dims, 0)))
    y = op.Div(x, op.Sqrt(op.Add(square, op.CastLike(eps, x))))
    return of_dtype(y if weight is None else op.Mul(y, weight), x.dtype)


def layer_normalized(op, x, weight, bias, dims, eps):
    """LayerNormalization in x's dtype."""
    weight = filled(op, 1.0, x, slice(-dims, None), x.dtype) if weight is None else weight
    return of_dtype(op.LayerNormalization(x, weight, bias, axis=-dims, epsilon=eps), x.dtype)


def normalized_rows(op, x, weight, bias, dims, eps, centered, out_dtype):
    """The norm over the last `dims` dimensions of x."""
    dtype = one_dtype(x, weight, bias, out_dtype)
    if not centered and op.version < HAVE_RMS_NORMALIZATION:
        dtype = compute_dtype(dtype)
    x, weight, bias = (cast(op, t, dtype) for t in (x, weight, bias))
    if centered:
        y = layer_normalized(op, x, weight, bias, dims, eps)
    else:
        y = rms_normalized(op, x, weight, dims, eps)
        y = y if bias is None else of_dtype(op.Add(y, bias), dtype)
    return cast(op, y, out_dtype)


def normalized_channels(op, x, weight, bias, eps, centered, out_dtype):
    """The norm over x's second dimension."""
    rank = len(x.shape)
    last = of_dtype(op.Transpose(x, perm=[0, *range(2, rank), 1]), x.dtype)
    y = normalized_rows(op, last, weight, bias, 1, eps, centered, out_dtype)
    return of_dtype(op.Transpose(y, perm=[0, rank - 1, *range(1, rank - 1)]), out_dtype)


def of_channels(op, x, weight, bias, dtype):
    """weight and bias, of which absent ones are 1 and 0, in the dtype."""
    weight = filled(op, 1.0, x, slice(1, 2), dtype) if weight is None else cast(op, weight, dtype)
    return weight, filled(op, 0.0, x, slice(1, 2), dtype) if bias is None else cast(op, bias, dtype)


def normalized_by_statistics(op, x, weight, bias, mean, var, eps):
    """BatchNormalization, in the dtype that is computed in."""
    dtype = compute_dtype(x.dtype)
    x, mean, var = (cast(op, t, dtype) for t in (x, mean, var))
    parameters = of_channels(op, x, weight, bias, dtype)
    return of_dtype(op.BatchNormalization(x, *parameters, mean, var, epsilon=eps), dtype)


def normalized_groups(op, x, weight, bias, groups, eps, out_dtype):
    """GroupNormalization, or what is the same, in out_dtype; in the dtype computed in where that is None."""
    rank, of_instances = len(x.shape), groups == x.shape[1] and len(x.shape) > 2
    by_node = op.version >= HAVE_GROUP_NORMALIZATION and rank > 2 and not of_instances
    dtype = one_dtype(x, weight, bias, out_dtype) if by_node and out_dtype else compute_dtype(x.dtype)
    x = cast(op, x, dtype)
    if by_node or of_instances:
        parameters = of_channels(op, x, weight, bias, dtype)
        if of_instances:
            y = op.InstanceNormalization(x, *parameters, epsilon=eps)
        else:
            options = dict(num_groups=groups, stash_type=compute_dtype(dtype))
            y = op.GroupNormalization(x, *parameters, epsilon=eps, **options)
    else:
        of_groups = op.Reshape(x, axes(op, (0, groups, -1)))
        y = op.InstanceNormalization(of_groups, *of_channels(op, of_groups, None, None, dtype), epsilon=eps)
        y = op.Reshape(y, op.Shape(x))
        for parameter, combine in ((weight, op.Mul), (bias, op.Add)):
            y = y if parameter is None else combine(y, beside(op, cast(op, parameter, dtype), rank - 2, 1))
    return cast(op, of_dtype(y, dtype), out_dtype or dtype)


def activated(op, z, act, negative_slope):
    dtype, activation = z.dtype, ACTIVATIONS[act]
    if act in ("gelu", "gelu_tanh") and op.version >= HAVE_GELU:
        y = op.Gelu(z, approximate="none" if act == "gelu" else "tanh")
    else:
        y = activation(op, z, negative_slope)
    return of_dtype(y, dtype)


ACTIVATIONS = {
    None: lambda op, z, _: z,
    "relu": lambda op, z, _: op.Relu(z),
    "relu6": lambda op, z, _: op.Clip(z, op.CastLike(0.0, z), op.CastLike(6.0, z)),
    "leaky_relu": lambda op, z, negative_slope: op.LeakyRelu(z, alpha=negative_slope),
    "silu": lambda op, z, _: z * op.Sigmoid(z),
    "sigmoid": lambda op, z, _: op.Sigmoid(z),
    "gelu": lambda op, z, _: z * (op.Erf(z * math.sqrt(0.5)) + 1.0) * 0.5,
    "gelu_tanh": lambda op, z, _: z * op.Sigmoid((z + z * z * z * 0.044715) * math.sqrt(8 / math.pi)),
    "hardswish": lambda op, z, _: op.HardSwish(z),
}


def kept(op, x, p, leading, rank):
    """Dropout's mask, a decision for each element of x's first `leading` dimensions; None for each of x's."""
    like = x
    if leading is not None:
        like = beside(op, filled(op, 1.0, x, slice(leading), FLOAT), rank - leading, leading)
    _, mask = op.Dropout(like, p, True)
    return mask


def dropped(op, x, p, leading, rank, constants):
    """x of which elements are dropped, and others scaled by `constants` of the probability to be kept."""
    zero = op.CastLike(0.0, x)
    if p == 1:
        y = op.Expand(zero, op.Shape(x))
    elif (leading, constants(1 - p)) == (None, (1 / (1 - p), 0.0, 0.0)):
        y = op.Dropout(x, p, True)
    else:
        scale, shift, else_ = constants(1 - p)
        y = x if scale == 1 else x * scale
        y = y - shift if shift else y
        y = op.Where(kept(op, x, p, leading, rank), y, op.CastLike(else_, x) if else_ else zero)
    return of_dtype(y, x.dtype)

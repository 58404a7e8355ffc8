"""A case that is measured, and how far results may be from float64."""

import copy
import math
import re
from dataclasses import dataclass

import torch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16, "fp64": torch.float64}
SHORT = {dtype: name for name, dtype in DTYPES.items()}
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by dimensions
SHAPE = re.compile(r"\d+(x\d+)*")


@dataclass(frozen=True)
class Case:
    operation: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    channels_last: bool = False
    sliced: bool = False  # whether the input is a part of the columns of a wider tensor
    training: bool = True
    layer: str = ""  # the class, where it is not the operation's usual one
    origin: str = ""  # where the shape occurs

    def __str__(self):
        words = [self.layer or self.operation, SHORT[self.dtype], "x".join(map(str, self.shape))]
        words += ["channels_last"] * self.channels_last + ["sliced"] * self.sliced
        words += ["evaluation"] * (not self.training)
        return " ".join(words)

    @property
    def bytes(self):
        """Bytes of a tensor of the input's shape."""
        return math.prod(self.shape) * self.dtype.itemsize

    def like_input(self, make, device, dtype=None):
        """A tensor of the input's shape and strides, by `make`: torch.empty, torch.randn, ..."""
        if not self.sliced:
            return self.like_output(make, device, dtype)
        *leading, cols = self.shape
        return make((*leading, cols + 64), device=device, dtype=dtype or self.dtype)[..., 32:-32]

    def like_output(self, make, device, dtype=None):
        """A tensor of the input's shape and memory format, but dense."""
        tensor = make(self.shape, device=device, dtype=dtype or self.dtype)
        return tensor.to(memory_format=LAST[len(self.shape)]) if self.channels_last else tensor


def shape_of(text):
    """(8, 768) of "8x768"."""
    return tuple(map(int, text.split("x")))


def cases_of(operation, text, origin=""):
    """The cases of a text, written as they are printed, commas between; bfloat16 where it names no dtype.

    "8x768, Dropout2d fp32 4x40x64x64 channels_last" are two cases of dropout.
    """
    return [_case(operation, words.split(), origin) for words in text.split(",")]


def _case(operation, words, origin):
    flags = {flag: flag in words for flag in ("channels_last", "sliced", "evaluation")}
    (shape,) = (word for word in words if SHAPE.fullmatch(word))
    (dtype,) = [DTYPES[word] for word in words if word in DTYPES] or [torch.bfloat16]
    layer = " ".join(word for word in words if word not in {*flags, *DTYPES, shape})
    training = not flags["evaluation"]
    memory = flags["channels_last"], flags["sliced"]
    return Case(operation, shape_of(shape), dtype, *memory, training, layer, origin)


def each(text, *patterns):
    """The cases of a text, each put into every pattern: each("8x768", "{}", "fp32 {}")."""
    return ", ".join(pattern.format(case.strip()) for case in text.split(",") for pattern in patterns)


def in_float_dtypes(text):
    """The cases of a text, each in float32 and in 16 bits."""
    return each(text, "fp32 {}", "bf16 {}", "fp16 {}")


def relative_error(result, reference):
    difference = (result.double() - reference).norm() / reference.norm().clamp_min(1e-300)
    return difference.item()


def worst(errors):
    """The largest value, or nan if any value is nan, which max() would miss."""
    return max(errors, key=lambda error: (error != error, error))


def float64_results(reference, x, dy):
    """(y, gradients, buffers) of one call of torch's layer in float64."""
    reference = copy.deepcopy(reference).double()
    x = x.detach().double().requires_grad_()
    y = reference(x)
    gradients = torch.autograd.grad(y, (x, *reference.parameters()), dy.double())
    return y.detach(), gradients, list(reference.buffers())


def largest_error(expected, layer, y, gradients):
    """The largest relative error, in the norm, of y, the gradients, if any, and the layer's buffers."""
    expected_y, expected_gradients, expected_buffers = expected
    pairs = [(y, expected_y), *zip(gradients, expected_gradients)]
    pairs += [
        (ours, theirs.double())
        for ours, theirs in zip(layer.buffers(), expected_buffers)
        if ours.is_floating_point()
    ]
    return worst(relative_error(*pair) for pair in pairs)


def error_against_float64(reference, layer, x, dy, y, gradients):
    """The largest relative error of what the layer's first call gave and left.

    `reference` is torch's layer before the call, `layer` the one that made it.
    """
    return largest_error(float64_results(reference, x, dy), layer, y, gradients)


def is_mask_of_dropout(keep, p, decisions):
    """Whether the share of kept elements is plausible for this many draws."""
    standard_error = (p * (1 - p) / decisions) ** 0.5
    # 2^-16: p is rounded to 16 bits by some
    return abs(keep.double().mean().item() - (1 - p)) <= 6 * standard_error + 2**-16


# Rounding once to the dtype is 2^-9, 2^-12 and 2^-25 in the norm. Statistics, sums over the rows in the dtype
# of the parameters, and torch's own intermediate roundings come on top.
TOLERANCES = {torch.bfloat16: 2**-6, torch.float16: 2**-9, torch.float32: 2**-13, torch.float64: 2**-40}

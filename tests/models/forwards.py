"""Forwards that do what Python can do, besides computing; `SEEN` is what they did."""

import contextlib
import logging
import random
import warnings

import numpy
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, dy):
        return dy * 2


def affine(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit.script is deprecated
    scripted = torch.jit.script(affine)


@torch.compiler.disable
def disabled(x):
    SEEN.append("disabled")
    return x * 2


class Listening(logging.Handler):
    def emit(self, record):
        SEEN.append(record.getMessage())


LOG = logging.getLogger("normreg.tests.fusible")
LOG.propagate = False
LOG.setLevel(logging.INFO)
SEEN = []  # effects
np = numpy


def fused(m, x):
    return m.act(m.norm(m.linear(x)))


def function(m, x):
    return fused(m, Doubled.apply(x))


def of_a_script(m, x):
    return fused(m, scripted(x))


def script_module(m, x):
    return fused(m, m.inner(x))


def reentrant(m, x):
    return m.layer_norm(x + m.drop(checkpoint(m.linear, x, use_reentrant=True)))


def checkpointed(m, x):
    return checkpoint(lambda x: m.layer_norm(x + m.drop(m.linear(x))), x, use_reentrant=False)


def checkpointed_batch_norm(m, x):
    return m.act(checkpoint(lambda x: m.act(m.norm(m.linear(x))) + m.drop(x), x, use_reentrant=False))


def contexts():
    SEEN.append("contexts")
    return contextlib.nullcontext(), contextlib.nullcontext()


def checkpointed_in_contexts(m, x):
    return checkpoint(lambda x: m.act(m.linear(x)), x, use_reentrant=False, context_fn=contexts) + fused(m, x)


def zeros(m, x):
    return fused(m, x + torch.zeros(x.shape[0], 1, dtype=x.dtype, device=x.device))


def with_nan(m, x):
    return fused(m, x) + m.given_nan(x, 3.0)


def divided(m, x):
    return fused(m, x / np.sqrt(8))


def appending(m, x):
    y = m.norm(m.linear(x))
    SEEN.append("appended")
    return m.act(y)


def keeping(m, x):
    y = m.norm(m.linear(x))
    m.last = y
    return m.act(y)


def counting(m, x):
    m.steps += 1
    m.seen += 1
    return fused(m, x)


def logging_(m, x):
    y = m.norm(m.linear(x))
    LOG.info("logged")
    return m.act(y)


def printing(m, x):
    y = m.norm(m.linear(x))
    print("printed")
    return m.act(y)


def recorded(m, x):
    y = m.norm(m.linear(x))
    with torch.profiler.record_function("recorded"):
        return m.act(y)


def packed(m, x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: SEEN.append("packed") or t, lambda t: t):
        return fused(m, x)


def attending(m, x):
    with sdpa_kernel(SDPBackend.MATH):
        y = F.scaled_dot_product_attention(x[None], x[None], x[None])[0]
    return fused(m, y)


def disabling(m, x):
    return fused(m, disabled(x))


def by_value(m, x):
    return fused(m, x) if x.sum() > -1e9 else x


def by_number(m, x):
    return fused(m, x) * (2 if x.mean().item() > -1e9 else 1)


def by_training(m, x):
    return m.act(m.norm(x)) if m.training else m.norm(x)


def by_autocast(m, x):
    return m.norm(x) if torch.is_autocast_enabled("cpu") else m.act(m.norm(x))


def telling(m, x):
    y = m.norm(m.linear(x))
    y.normalized = True
    return m.act(y) if y.normalized else y


def asking(m, x):
    return fused(m, x.tensors if hasattr(x, "tensors") else x)


def partly_without_gradient(m, x):
    with torch.no_grad():
        y = m.linear(x)
    return m.act(m.norm(y)) + m.linear(x)


def split_by_a_mode(m, x):
    with torch.no_grad():
        y = m.norm(x)
    return m.act(y) + x


def partly_in_autocast(m, x):
    with torch.autocast(x.device.type, torch.bfloat16, enabled=False):
        y = m.norm(m.linear(x))
    return m.act(y)


def at_random(m, x):
    return fused(m, x + torch.rand_like(x))


def at_pythons_random(m, x):
    return fused(m, x * (1 + (random.random() > 2)))


def at_numpys_random(m, x):
    return fused(m, x * float(numpy.random.uniform(1, 2, 3)[0]))


def of_numbers(m, x):
    return fused(m, x) + torch.ones(8, dtype=x.dtype, device=x.device)


def of_a_list(m, x):
    values = [m.norm(x), m.linear(x)]
    values.reverse()
    return m.act(values.pop()) + sum(values)


def differentiating(m, x):
    y = fused(m, x)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=m.training, retain_graph=True)
    return y + dx


FORWARDS = [
    function,
    of_a_script,
    script_module,
    reentrant,
    checkpointed,
    checkpointed_batch_norm,
    checkpointed_in_contexts,
    zeros,
    with_nan,
    divided,
    appending,
    keeping,
    counting,
    logging_,
    printing,
    recorded,
    packed,
    attending,
    disabling,
    by_value,
    by_number,
    by_training,
    by_autocast,
    telling,
    asking,
    partly_without_gradient,
    split_by_a_mode,
    partly_in_autocast,
    at_random,
    at_pythons_random,
    at_numpys_random,
    of_numbers,
    of_a_list,
    differentiating,
]

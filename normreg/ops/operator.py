"""The operators `torch.ops.normreg`: what torch.compile traces where eager mode launches kernels.

An operator runs the very function that eager mode calls, and is differentiated by the formula of the
operation's autograd.Function. Eager mode does not call it: its dispatch costs more than a Function's.
"""

import torch
from torch._library.autograd import Info, make_autograd_impl

from normreg.kernels import cpu

LIBRARY = torch.library.Library("normreg", "DEF")


def register(schema, implementation, fake, function=None, differentiable=1, everywhere=False):
    """Defines the operator `normreg::<schema>` and returns it.

    fake: makes empty tensors of the results' sizes, strides and dtypes.
    function: an autograd.Function of the same arguments, of which `save` and `backward` differentiate it.
        `save` is a `setup_context` by another name: where a Function has that one, torch inspects the
        signature of its forward at every call.
    differentiable: of its results, if there are several, that many, the first ones.
    everywhere: the implementation takes tensors of any device, not only those that kernels take.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
    for device in ("CUDA", "CPU") if cpu.KERNELS or everywhere else ("CUDA",):
        LIBRARY.impl(name, implementation, device)
    torch.library.register_fake(f"normreg::{name}", fake, lib=LIBRARY)
    operator = getattr(torch.ops.normreg, name).default
    if function is not None:

        def setup_context(ctx, inputs, output):
            if isinstance(output, tuple):
                ctx.mark_non_differentiable(*(t for t in output[differentiable:] if t is not None))
                ctx.set_materialize_grads(False)
            function.save(ctx, inputs, output)

        # torch.library.register_autograd is these two lines, but refuses an operator that updates buffers
        kernel = make_autograd_impl(operator, Info(function.backward, setup_context))
        LIBRARY.impl(name, kernel, "Autograd", with_keyset=True)
    return operator


def fake_gradients(x, parameter_shape, parameter_dtype, wanted):
    """Empty tensors like the wanted ones of dx, contiguous, dweight and dbias; None for the others."""
    like = ((x.shape, x.dtype), (parameter_shape, parameter_dtype), (parameter_shape, parameter_dtype))
    return tuple(
        x.new_empty(shape, dtype=dtype) if want else None for want, (shape, dtype) in zip(wanted, like)
    )


def first_result(run, function, traced, arguments, wants_gradient):
    """The first result of `run(*arguments)`: by its operator where torch.compile traces, else by its Function
    where autograd records."""
    if torch.compiler.is_compiling():
        return traced(*arguments)[0]
    return function.apply(*arguments) if wants_gradient else run(*arguments)[0]


def traces(dy):
    """Whether a backward that is given dy is being recorded, so that it has to call an operator."""
    return type(dy) is not torch.Tensor or torch.compiler.is_compiling()

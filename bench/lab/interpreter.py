"""Makes Triton's interpreter several times faster without changing what it computes.

Nearly all of its time goes to objects that describe types, not to numbers: it makes them anew for every
operation, and patches triton.language for every launch and every call of a device function.
"""

import functools
import math

import numpy
from triton.language import core, semantic
from triton.runtime import interpreter


@functools.cache
def speed_up():
    """Applies everything below, once in a process however often it is called."""
    patch_language_once()
    call_builtins_directly()
    skip_checks_without_effect()
    keep_types()
    pass_what_needs_no_conversion()
    apply_the_error_function_to_lists()


def patch_language_once():
    """Patches triton.language, as a function's module sees it, once a launch for modules that see the same.

    The interpreter does so, for a millisecond each, when a kernel starts and at every call of a device
    function, and undoes it at the kernel's end.
    """
    patch, set_attributes = interpreter._patch_lang, interpreter._LangPatchScope
    languages = {id(interpreter.tl), id(core)}
    seen, patched = {}, set()  # by module, in this launch
    known = {}  # {(patched before, seen): what is set}

    def patch_once(function):
        module = function.__globals__["__name__"]
        if module not in seen:
            seen[module] = frozenset(map(id, function.__globals__.values())) & languages
        sees = seen[module]
        if sees in patched:
            return None
        starts, key = not patched, (frozenset(patched), sees)
        patched.add(sees)
        if key in known:
            scope = set_attributes()
            for target, name, value in known[key]:
                scope.set_attr(target, name, value)
        else:
            scope = patch(function)
            known[key] = [(target, name, vars(target)[name]) for target, name, _ in scope._changes]
        if starts:
            restore = scope.restore
            scope.restore = lambda: (patched.clear(), restore())
        return scope

    interpreter._patch_lang = patch_once


def call_builtins_directly():
    """Calls builtins without the wrapper that checks whether a kernel is the caller."""

    def patch_attribute(target, name, member, builder, scope):
        function = getattr(member, "__wrapped__", member)

        def call(*arguments, **options):
            options["_semantic"] = interpreter.interpreter_semantic
            return function(*arguments, **options)

        scope.set_attr(target, name, call)

    interpreter._patch_attr = patch_attribute


def skip_checks_without_effect():
    """Skips the repetition of 32-bit operations in 64 bits, whose assertion only `debug` makes."""
    check = semantic.TritonSemantic.binary_op_sanitize_overflow_impl

    def check_if_asserted(self, lhs, rhs, operation):
        if self.builder.options.debug:
            check(self, lhs, rhs, operation)

    semantic.TritonSemantic.binary_op_sanitize_overflow_impl = check_if_asserted


def keep_types():
    """Keeps one object for each type, with the attributes that all tensors of the type share."""
    numpy_dtype, numpy_dtypes = interpreter._get_np_dtype, {}

    def kept_numpy_dtype(type):
        if type.name not in numpy_dtypes:
            numpy_dtypes[type.name] = numpy_dtype(type)
        return numpy_dtypes[type.name]

    make_block_type, block_types = core.block_type.__init__, {}

    def kept_block_type(cls, element_type, shape, *more):
        if cls is not core.block_type:
            return object.__new__(cls)
        key = element_type.name, *shape
        if key not in block_types:
            kept = object.__new__(cls)
            make_block_type(kept, element_type, shape)
            block_types[key] = kept
        return block_types[key]

    def initialise_once(self, *arguments):
        if "name" not in vars(self):
            make_block_type(self, *arguments)

    def tensor(self, handle, type):
        if not hasattr(type, "of_its_tensors"):
            make_tensor(self, handle, type)
            type.of_its_tensors = dict(vars(self))
        vars(self).update(type.of_its_tensors, handle=handle)

    make_tensor = core.tensor.__init__
    interpreter._get_np_dtype = kept_numpy_dtype
    core.block_type.__new__, core.block_type.__init__ = kept_block_type, initialise_once
    core.tensor.__init__ = tensor


def pass_what_needs_no_conversion():
    """Passes operands of one type without casts and broadcasts."""
    operands = semantic.TritonSemantic.binary_op_type_checking_impl
    broadcast, cast = semantic.TritonSemantic.broadcast_impl_value, semantic.TritonSemantic.cast
    broadcasts = {}

    def operands_unless_equal(self, lhs, rhs, *options, **named):
        divides = len(options) > 3 or named  # division has conversions of its own
        plain = isinstance(lhs, core.tensor) and isinstance(rhs, core.tensor) and not divides
        if plain and lhs.type is rhs.type and not lhs.dtype.is_ptr():
            return lhs, rhs
        return operands(self, lhs, rhs, *options, **named)

    def converted(self, tensor, type):
        if tensor.type is type:
            return tensor
        if tensor.type.is_block():
            return core.tensor(self.builder.create_broadcast(tensor.handle, type.shape.values), type)
        return core.tensor(self.builder.create_splat(type.to_ir(self.builder), tensor.handle), type)

    def broadcast_unless_equal(self, lhs, rhs):
        ranks = len(lhs.shape), len(rhs.shape)
        if lhs.type is rhs.type or ranks == (0, 0):
            return lhs, rhs
        if ranks[0] != ranks[1] and all(ranks):
            return broadcast(self, lhs, rhs)
        key = lhs.type.name, rhs.type.name
        if key not in broadcasts:
            broadcasts[key] = [operand.type for operand in broadcast(self, lhs, rhs)]
        to_lhs, to_rhs = broadcasts[key]
        return converted(self, lhs, to_lhs), converted(self, rhs, to_rhs)

    def cast_unless_equal(self, input, type, *options, **named):
        return input if input.dtype is type.scalar else cast(self, input, type, *options, **named)

    semantic.TritonSemantic.binary_op_type_checking_impl = operands_unless_equal
    semantic.TritonSemantic.broadcast_impl_value = broadcast_unless_equal
    semantic.TritonSemantic.cast = cast_unless_equal


def apply_the_error_function_to_lists():
    """Calls C's erf once an element, where numpy.vectorize makes two calls of Python's."""

    def erf(x):
        return numpy.fromiter(map(math.erf, x.ravel().tolist()), x.dtype, x.size).reshape(x.shape)

    interpreter.np_erf_fp64 = erf

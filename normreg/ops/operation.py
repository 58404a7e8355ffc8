"""Builds everything torch needs for an operation from the functions that compute it.

An operation has a forward and a fake, a backward and a formula. `Operation` makes of them an operator of
`torch.ops.normreg`, which torch.compile traces, and an autograd.Function for eager mode, where an operator's
dispatch would cost more. A call takes one of three paths: the operator where calls are recorded, the Function
where autograd records, else the forward itself.

The names of parameters say what these functions are given. A fake and a decomposition, the same in torch's
operations, take any arguments of what they stand for.
Backward and formula take any arguments and results of the forward, which are then kept for them, incoming
gradients as `d<result>`, and `wanted`, a bool for each gradient: whether it is to be computed. The schema of
an operator follows from annotations; parameters that have a default are not in it.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl
from torch._subclasses.fake_tensor import FakeTensor

from normreg.kernels import cpu
from normreg.ops import decomposition as decompositions
from normreg.ops import recording, untranslated
from normreg.ops.schema import Seed as Seed
from normreg.ops.schema import Values, arguments, is_tensor, picker, places, schema

LIBRARY = torch.library.Library(__name__.partition(".")[0], "DEF")  # of a vendored copy, another one
PLAIN = (torch.Tensor, torch.nn.Parameter)
EMPTY: Mapping[str, Any] = {}
OPERATIONS: dict[Any, "Operation"] = {}  # by their operator


def traces(tensor: Tensor) -> bool:
    """Whether a call on this tensor has to be that of an operator: it is recorded, or no kernel takes it."""
    if torch.compiler.is_compiling() or type(tensor) not in PLAIN:
        return True
    return not (tensor.is_cuda or cpu.KERNELS)


def is_plain(tensor: Any) -> bool:
    """Whether this is a tensor of no subclass, or what torch.export has made of one."""
    kind = type(tensor)
    return kind in PLAIN or (kind is FakeTensor and torch.compiler._is_exporting_flag)


def wants_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Whether autograd would record an operation on these tensors."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def is_batched(dy: Tensor | None) -> bool:
    """Whether dy is a batch of incoming gradients, of either vmap."""
    if dy is None or torch.compiler.is_compiling():
        return False
    return torch._C._functorch.is_legacy_batchedtensor(dy) or torch._C._are_functorch_transforms_active()


def wants_formula(dy: Tensor) -> bool:
    """Whether the backward of dy has to be differentiable torch operations.

    A kernel's gradient has no gradient of its own, and no kernel takes a batch of incoming gradients.
    """
    return torch.is_grad_enabled() or is_batched(dy)


class Operator:
    """A function of tensors and the operator that runs it; a call takes the operator where it is recorded."""

    def __init__(
        self,
        name: str,
        run: Callable[..., Any],
        fake: Callable[..., Any],
        results: Sequence[str],
        *,
        mutates: Sequence[str] = (),
        everywhere: bool = False,
        decomposition: Callable[..., Any] | None = None,
    ) -> None:
        """Defines the operator `normreg::<name>`.

        fake: makes empty tensors of the results' sizes, strides and dtypes.
        mutates: arguments that are changed in place.
        everywhere: `run` takes tensors of every device, not only of those that kernels run on.
        decomposition: the same in torch's operations; takes any of the arguments, and may find more results.
        """
        self.name, self.run = name, run
        tags = torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides
        LIBRARY.define(name + schema(run, results, mutates), tags=tags)
        for device in ("CUDA", "CPU") if cpu.KERNELS or everywhere else ("CUDA",):
            LIBRARY.impl(name, run, device)
        recording.register(LIBRARY, name, run)
        pick = picker(arguments(fake), [*arguments(run)])

        def fake_of(*inputs: Any) -> Any:
            return fake(*pick(inputs))

        torch.library.register_fake(f"{LIBRARY.ns}::{name}", fake_of, lib=LIBRARY)
        self.operator = getattr(getattr(torch.ops, LIBRARY.ns), name).default
        if decomposition is not None:
            decompositions.register(self.operator, fake_of, decomposition)
            if not (cpu.KERNELS or everywhere):  # for programs that were exported where there are kernels
                LIBRARY.impl(name, decompositions.DECOMPOSITIONS[self.operator], "CPU")
        untranslated.enter(self.operator, fake_of)

    def __call__(self, *inputs: Any) -> Any:
        return (self.operator if traces(inputs[0]) else self.run)(*inputs)


class Operation(Operator):
    """An operator that has gradients, and the autograd.Function that eager mode takes in its place."""

    def __init__(
        self,
        name: str,
        run: Callable[..., Any],
        fake: Callable[..., Any],
        results: Sequence[str],
        backward: Callable[..., Any],
        formula: Callable[..., Any] | None = None,
        *,
        gradients: int,
        differentiable: int = 1,
        returned: int = 1,
        dtypes: Mapping[str, Sequence[str]] = EMPTY,
        constants: Mapping[str, Any] = EMPTY,
        keep: Mapping[str, Callable[..., Any]] = EMPTY,
        **options: Any,
    ) -> None:
        """Defines the operator with its derivative, and the Function.

        run: the forward. A call may leave out its last argument: whether there will be a backward.
        backward: gives the gradients of the first `gradients` arguments, None for those not wanted. It takes
            incoming gradients, tensors, the last of which may be a seed, others and `wanted`, in this order.
        formula: the same in differentiable torch operations, which may take more of the forward's arguments;
            None where the backward consists of such operations.
        differentiable, returned: how many of the first results have gradients, and how many a call returns.
        dtypes: names of what is kept as the dtype of the first one given of some arguments.
        constants: names of what is the same in all calls.
        keep: functions of arguments and results, whose values are kept in place of arguments.
        """
        super().__init__(name, run, fake, results, **options)
        inputs, formula = arguments(run), formula or backward
        self.arity, self.gradients, self.differentiable = len(inputs), gradients, differentiable
        self.returned = None if len(results) == 1 else slice(returned) if returned > 1 else 0

        known = [*inputs, *results, *constants, *dtypes]
        self.constants = tuple(constants.values())
        self.dtypes = [places(names, known) for names in dtypes.values()]
        self.keep = [
            (known.index(name), value, picker(inspect.signature(value).parameters, known))
            for name, value in keep.items()
        ]
        kept = [*arguments(backward)][differentiable:-1]
        more = [name for name in arguments(formula) if name in inputs and name not in kept]
        tensors = [name for name in kept if name in results or is_tensor(inputs.get(name))]
        numbers = kept[len(tensors) :]
        if kept[: len(tensors)] != tensors:
            raise ValueError(f"{name}: expected a backward that takes tensors, then others, got {kept}")
        self.seed = known.index(tensors.pop()) if "seed" in tensors else None
        self.pick_tensors, self.pick_numbers = picker(tensors, known), picker([*numbers, *more], known)
        self.numbers = len(numbers)
        self.backward = backward, backward
        if isinstance(backward, Operator):
            self.backward = backward.run, backward.operator
        self.formula = formula
        self.formula_places = places(arguments(formula), [*arguments(backward), *more])

        self.__name__, OPERATIONS[self.operator] = name, self  # torch.fx writes calls by name
        self.save = self.saver()
        self.function = self.autograd_function()
        # what Function.apply calls unless a transform of torch.func is active, which is torch's case
        self.apply = super(torch.autograd.Function, self.function).apply  # type: ignore[misc]
        # torch.library.register_autograd is these two lines, but refuses an operator that updates buffers
        kernel = make_autograd_impl(self.operator, Info(self.function.backward, self.setup_context))
        LIBRARY.impl(name, self.keeping(kernel), "Autograd", with_keyset=True)

    def keeping(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """The operator's kernel that autograd records, which has kept what its backward takes.

        A program of torch.export that was made where nothing had a gradient says that nothing is to be kept.
        """
        if not [*arguments(self.run)][-1].startswith("save"):
            return kernel

        def keep(keyset: Any, *inputs: Any) -> Any:
            return kernel(keyset, *inputs[:-1], inputs[-1] or wants_gradient(inputs[: self.gradients]))

        return keep

    def __call__(self, *inputs: Any) -> Any:
        """The results that are returned, a single one by itself."""
        records = wants_gradient(inputs[: self.gradients])
        if len(inputs) < self.arity:
            inputs += (records,)
        if traces(inputs[0]):
            output = self.operator(*inputs)
        elif records:
            return self.apply(*inputs)
        else:
            output = self.run(*inputs)
        return output if self.returned is None else output[self.returned]

    def saver(self) -> Callable[..., Any]:
        """A function that runs the forward and keeps what the backward takes, tensors in autograd's way."""
        run, constants, dtypes, keep, seed_place = self.run, self.constants, self.dtypes, self.keep, self.seed
        pick_tensors, pick_numbers, single = self.pick_tensors, self.pick_numbers, self.returned is None

        def save(ctx: Any, inputs: Values, output: Any = None) -> Any:
            if output is None:
                output = run(*inputs)
            values = [*inputs, output, *constants] if single else [*inputs, *output, *constants]
            for chosen in dtypes:
                for i in chosen:
                    if values[i] is not None:
                        values.append(values[i].dtype)
                        break
            for i, value, pick in keep:
                values[i] = value(*pick(values))
            ctx.numbers = pick_numbers(values)
            if seed_place is None:
                ctx.save_for_backward(*pick_tensors(values))
                return output
            seed = values[seed_place]
            ctx.seed = seed if isinstance(seed, int) else None
            ctx.save_for_backward(*pick_tensors(values), seed if ctx.seed is None else None)
            return output

        return save

    def autograd_function(self) -> type[torch.autograd.Function]:
        """What eager mode records. With a `setup_context`, torch would inspect a signature at every call."""
        save, mark, returned = self.save, self.mark, self.returned
        differentiable, gradients, numbers = self.differentiable, self.gradients, self.numbers
        plain, recorded = self.backward
        absent, several = (None,) * (self.arity - gradients), differentiable > 1
        returns_several = isinstance(returned, slice)

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = save(ctx, inputs)
            if returns_several:
                mark(ctx, output)
            return output if returned is None else output[returned]

        def backward(ctx: Any, *incoming: Any) -> Values:
            incoming = incoming[:differentiable]
            dy = incoming[0]
            if dy is None or wants_formula(dy) or (several and any(map(is_batched, incoming))):
                return *self.by_formula(ctx, *incoming), *absent
            compute = recorded if traces(dy) else plain
            wanted = ctx.needs_input_grad[:gradients]
            return *compute(*incoming, *self.tensors(ctx, dy), *ctx.numbers[:numbers], wanted), *absent

        methods = dict(forward=staticmethod(forward), backward=staticmethod(backward))
        return type(f"{self.name}_function", (torch.autograd.Function,), methods)

    def mark(self, ctx: Any, output: Values) -> None:
        """Tells autograd which results have no gradients, and to make no zeros for absent ones."""
        ctx.mark_non_differentiable(*[t for t in output[self.differentiable :] if t is not None])
        ctx.set_materialize_grads(False)

    def setup_context(self, ctx: Any, inputs: Values, output: Any) -> None:
        """Prepares the operator's backward."""
        if self.returned is not None:
            self.mark(ctx, output)
        self.save(ctx, inputs, output)

    def tensors(self, ctx: Any, dy: Tensor) -> Values:
        """The tensors that were kept; the seed becomes one where the backward is being recorded."""
        tensors: Values = ctx.saved_tensors
        if self.seed is None or ctx.seed is None:
            return tensors
        seed = torch.full((), ctx.seed, dtype=torch.int64, device=dy.device) if traces(dy) else ctx.seed
        return (*tensors[:-1], seed)

    def by_formula(self, ctx: Any, *incoming: Tensor | None) -> Values:
        """The gradients in differentiable torch operations."""
        dy = next((dy for dy in incoming if dy is not None), None)
        if dy is None:
            return (None,) * self.gradients
        wanted, numbers = ctx.needs_input_grad[: self.gradients], ctx.numbers
        kept = *numbers[: self.numbers], wanted, *numbers[self.numbers :]
        values = *incoming, *self.tensors(ctx, dy), *kept
        found: Values = self.formula(*[values[i] for i in self.formula_places])
        return found

"""The parts of a layer's call: what Python does between the call and the launches, each part called alone.

    dispatch      the decision, kernel or torch
    autograd      the autograd.Function around the launcher
    launcher      the function of `normreg.kernels`, of which are
    allocations     the tensors that it makes
    launches        its launches

What is left is the module, the function, the choice of path and, in a backward, autograd's engine. The parts
are found by watching one call, and then called again with the same arguments.
"""

import contextlib
import sys
from unittest import mock

import torch

from normreg.functional import dispatch
from normreg.kernels import launch
from normreg.ops.operation import OPERATIONS

PARTS = ("dispatch", "autograd", "launcher", "allocations", "launches")
REST = "rest"
MAKE_TENSORS = (torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")
DECIDE, LAUNCH = dispatch.layer_norm.__code__, launch.launch.__code__


@contextlib.contextmanager
def noted_allocations():
    """Notes the calls that make tensors meanwhile."""
    noted = []

    def noting(make):
        def call(*arguments, **options):
            noted.append(lambda: make(*arguments, **options))
            return make(*arguments, **options)

        return call

    with contextlib.ExitStack() as stack:
        for owner, name in MAKE_TENSORS:
            stack.enter_context(mock.patch.object(owner, name, noting(getattr(owner, name))))
        yield noted


def launchers():
    """{code: (function, operation or None)} of the launchers of forwards and backwards."""
    found = {}
    for operation in OPERATIONS.values():
        found[operation.run.__code__] = operation.run, operation
        backward, _ = operation.backward
        found.setdefault(backward.__code__, (backward, None))
    return found


def parts(call):
    """{part: function without arguments} of a call; only those parts that it has."""
    known, inside, records = launchers(), [], torch.is_grad_enabled()
    noted = {part: [] for part in PARTS}

    def watch(frame, event, _):
        code = frame.f_code
        if event == "return" and inside[-1:] == [frame]:
            inside.pop()
        if event != "call":
            return
        given = dict(frame.f_locals)
        if code is DECIDE:
            noted["dispatch"].append(lambda: given["reason"](given["x"], *given["arguments"]))
        elif code is LAUNCH:
            noted["launches"].append(
                lambda: launch.launch(given["call"], *given["tensors"], numbers=given["numbers"])
            )
        elif code in known and not inside:
            inside.append(frame)
            function, operation = known[code]
            given = [given[name] for name in code.co_varnames[: code.co_argcount]]
            detached = [value.detach() if isinstance(value, torch.Tensor) else value for value in given]
            noted["launcher"].append(lambda: function(*detached))
            if operation is not None and records:
                noted["autograd"].append(lambda: operation.apply(*given[: operation.arity]))

    with noted_allocations() as noted["allocations"], watched_by(watch):
        call()
    return {part: in_turn(calls) for part, calls in noted.items() if calls}


@contextlib.contextmanager
def watched_by(watch):
    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(before)


def in_turn(calls):
    def call():
        for one in calls:
            one()

    return call


def own_times(call, times):
    """Each part's own time, and what is left of the call."""
    own = dict(times)
    if "autograd" in own:
        own["autograd"] -= own["launcher"]
    own[REST] = call - sum(own.get(part, 0.0) for part in ("dispatch", "autograd", "launcher"))
    return own

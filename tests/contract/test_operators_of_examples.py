"""The operators that torch.compile traces, called as it would for every example: `opcheck`, and more.

`torch.library.opcheck` compares neither strides nor what is kept.
"""

import pytest
import torch
from operations import FUNCTIONS, LAYERS, OF_RANKS
from operator_calls import EXAMPLES, assert_fakes_are_like_the_results, calls_of
from operator_calls import guarded_memory as guarded_memory
from torch.library import opcheck

import normreg  # noqa: F401

every_case = pytest.mark.parametrize(("kind", "variant"), EXAMPLES)


@pytest.fixture
def calls(device, monkeypatch, kind, variant):
    return calls_of(kind, variant, device, monkeypatch)


def test_every_operator_is_called(device, monkeypatch):
    defined = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("normreg::")}
    telling = [(kind, "of float32") for kind in FUNCTIONS] + [(kind, "without gradients") for kind in LAYERS]
    called = {
        operator._schema.name
        for kind, variant in telling
        for operator, _ in calls_of(kind, variant, device, monkeypatch)
    }
    of_ranks = {f"normreg::{name}{end}" for name in OF_RANKS for end in ("", "_backward")}
    # examples need gradients and give a generator: test_operators.py and test_compiled_masks.py call these
    elsewhere = {"normreg::layer_norm_float8", "normreg::draw_seed"}
    assert defined == called | of_ranks | elsewhere


# torch's own look at the arguments it makes; it hides the warning, but not where warnings are errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.some(10)
@every_case
def test_opcheck(calls, kind, variant):
    for operator, arguments in calls:
        opcheck(operator, arguments)


@pytest.mark.some(40)
@every_case
def test_no_buffer_is_saved(calls, kind, variant):
    """What is kept are arguments that stay as they are, and results; the next batch changes a buffer."""
    saved = []
    for operator, arguments in calls:
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            results = operator(*arguments)
        names = [argument.name for argument in operator._schema.arguments]
        stay = [a for a, name in zip(arguments, names) if not name.startswith("running_")]
        known = [*stay, *(results if isinstance(results, tuple) else (results,))]
        pointers = {t.data_ptr() for t in known if isinstance(t, torch.Tensor)}
        assert {t.data_ptr() for t in saved} <= pointers, operator


@pytest.mark.some(40)
@every_case
def test_fakes_are_like_the_results(calls, kind, variant):
    for operator, arguments in calls:
        assert_fakes_are_like_the_results(operator, arguments)

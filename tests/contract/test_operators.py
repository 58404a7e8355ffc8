"""Calls of operators that were chosen by hand: `torch.library.opcheck`, and what it does not check."""

import pytest
import torch
from operator_calls import assert_fakes_are_like_the_results
from operator_calls import guarded_memory as guarded_memory
from operator_cases import CASES, FLOAT, OPERATORS
from torch.library import opcheck

import normreg  # noqa: F401

every_case = pytest.mark.parametrize(("name", "arguments"), CASES.values(), ids=CASES)


# the first of their arguments can be differentiated; of another one, three if it saves what is needed
DIFFERENTIABLE = {
    "dropout": 1, "dropout_add": 3, "bias_act_dropout": 2, "dropout_add_norm": 5, "batch_norm_act": 4,
    "batch_norm_act_inference": 4, "qk_norm": 6, "rms_norm_gated": 4,
}  # fmt: skip
KEEPS_NO_STATISTICS = ("dropout", "dropout_add", "bias_act_dropout")


def with_gradients(name, arguments):
    """x and parameters require grad, where the operator can be differentiated with these arguments."""
    if name in KEEPS_NO_STATISTICS or (arguments[-1] is True and not name.endswith("_backward")):
        for tensor in arguments[: DIFFERENTIABLE.get(name, 3)]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                tensor.requires_grad_()
    return arguments


# torch's own look at the arguments it makes; it hides the warning, but not where warnings are errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.some(20)
@every_case
def test_opcheck(device, name, arguments):
    opcheck(getattr(OPERATORS, name).default, with_gradients(name, arguments(device)))


@every_case
def test_saved_tensors(device, name, arguments):
    """What is kept is seen by `saved_tensors_hooks`, and is no buffer, which the next batch changes."""
    arguments = with_gradients(name, arguments(device))
    x, *others = arguments
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        result = getattr(OPERATORS, name).default(*arguments)
    kept = {t.data_ptr() for t in saved}
    if not x.requires_grad:
        expected = []
    elif name == "dropout":
        expected = others[:1]
    elif name == "dropout_add":
        _, layer_scale, row_scale, seed_ = others[:4]
        expected = [None if layer_scale is None else x, layer_scale, row_scale, seed_]
    elif name == "dropout_add_norm":
        _, weight, _, layer_scale, row_scale, seed_ = others[:6]
        expected = [None if layer_scale is None else x, weight, layer_scale, row_scale, seed_, *result[1:]]
    elif name == "ada_norm":
        expected = [x, *others[:4], others[5], *result[1:]]
    elif name == "qk_norm":
        expected = [x, *others[:3], *others[5:7], *result[2:]]
    elif name == "bias_act_dropout":
        expected = [x, *others[:2]]
    elif name == "rms_norm_gated":
        expected = [x, *others[:3], *result[1:]]
    elif name == "group_norm_act":
        expected = [x, *others[:2], *result[1:]]
    elif name.startswith("batch_norm_act"):
        bits, act = result[-1], others[3]
        terms = others[1:3] if act is not None and bits is None else []
        expected = [t for t in (x, others[0], *terms, *result[1:]) if t is not None]
    else:
        expected = [x, *others[: others[0] is not None], *result[1:]]
    assert kept == {t.data_ptr() for t in expected if t is not None}


@every_case
def test_fakes_are_like_the_results(device, name, arguments):
    assert_fakes_are_like_the_results(getattr(OPERATORS, name).default, arguments(device))


def test_rows_that_are_not_held_are_refused(device):
    """By operators called by themselves; the functions take other operators for such rows."""
    x, wide = torch.randn(2, 65536, device=device), torch.randn(2, 1, 65536, device=device)
    for call in (
        lambda: OPERATORS.ada_norm(x, x, *[None] * 5, 1e-5, FLOAT, FLOAT, True, False, False),
        lambda: OPERATORS.rms_norm_gated(x, x, None, None, 65536, True, "silu", 1e-5, FLOAT, False),
        lambda: OPERATORS.qk_norm(wide, wide, *[None] * 6, 1e-5, FLOAT, True, False, False),
    ):
        with pytest.raises(
            ValueError, match=r"^expected rows that a program holds, got 65536 elements: call"
        ):
            call()

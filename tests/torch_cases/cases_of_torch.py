"""torch's own test cases, with normreg's classes and functions in torch's place.

The cases are the entries of torch's `module_db` and `op_db`: an entry is found by its torch class or its
function's name, so that a layer added to `registry.COUNTERPARTS` and a function added to `functional` are
tested by torch's cases of them without a line here.
"""

import math
import warnings

import pytest
import torch

from normreg.models.registry import COUNTERPARTS

pytest.importorskip("expecttest", reason="torch's test cases cannot be imported without expecttest")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ImportWarning)  # hypothesis is not needed
    from torch.testing._internal.common_methods_invocations import op_db as op_db
    from torch.testing._internal.common_modules import ModuleErrorEnum as ModuleErrorEnum
    from torch.testing._internal.common_modules import module_db
    from torch.testing._internal.common_utils import noncontiguous_like as noncontiguous_like
# the import forbids to set torch.backends' flags, for the whole process
torch.backends.__allow_nonbracketed_mutation_flag = True


MODULE_INFOS = {info.module_cls: info for info in module_db if info.module_cls in COUNTERPARTS}


def raised_by(call, *arguments, **options):
    """(type, message) of the exception, or None."""
    try:
        call(*arguments, **options)
    except Exception as raised:
        return type(raised), str(raised)


def state_of(module):
    """What of a module is not a value: names, shapes, dtypes, devices, flags, version."""
    return [
        (name, type(t), t.shape, t.dtype, t.device, t.requires_grad)
        for name, t in [*module.named_parameters(), *module.named_buffers()]
    ], module.state_dict()._metadata


def assert_same_module(ours, theirs):
    assert repr(ours) == repr(theirs)
    assert state_of(ours) == state_of(theirs)
    assert ours.training == theirs.training
    public = {name for name in vars(theirs) if not name.startswith("_")}
    assert {name for name in vars(ours) if not name.startswith("_")} == public
    for name in public:
        if not isinstance(getattr(theirs, name), torch.Tensor):
            assert getattr(ours, name) == getattr(theirs, name)
    for name, expected in theirs.state_dict().items():
        assert expected.is_meta or torch.equal(ours.state_dict()[name], expected), name


SEEDS = 24  # two of 25 independent decisions agree in all of them once in 50,000 cases


def outcomes(call, function, x, seeds):
    """Outputs and gradients under `seeds` masks, in float64 and a row each; a complex number is two."""
    torch.manual_seed(5)
    results = []
    for _ in range(seeds):
        leaf = x.detach().clone().requires_grad_()
        y = call(function, leaf)
        assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride())
        dy = torch.full_like(y, 1 + 1j if y.is_complex() else 1)
        results.append((y.detach(), *torch.autograd.grad(y, leaf, dy)))
    return [torch.stack([parts(t).double().flatten() for t in column]) for column in zip(*results)]


def assert_same_decisions(ours, theirs, call, x, all_pairs=False):
    their_y, their_dx = outcomes(call, theirs, x, SEEDS)
    our_y, our_dx = outcomes(call, ours, x, SEEDS if all_pairs else 2)
    kept, their_kept = our_dx != 0, their_dx != 0
    assert (their_kept.any(0) & ~their_kept.all(0)).all(), "torch was seen to do both with every element"
    of_kept = torch.where(their_kept, their_y, -math.inf).amax(0)
    of_dropped = torch.where(their_kept, -math.inf, their_y).amax(0)
    # one rounding each, of terms of the size of the output or, in alpha dropout, of its shift
    tolerance = 2 * torch.finfo(x.dtype).eps * their_y.abs().max()
    torch.testing.assert_close(our_y, torch.where(kept, of_kept, of_dropped), rtol=0, atol=tolerance)
    torch.testing.assert_close(our_dx, kept * their_dx.max(), rtol=0, atol=2 * tolerance)
    together, theirs_together = groups(kept), groups(their_kept)
    assert (together >= theirs_together).all(), "elements that share a decision in torch"
    if all_pairs:
        assert torch.equal(together, theirs_together)


def groups(kept):
    """Which pairs of elements are always kept together."""
    return (kept[:, :, None] == kept[:, None, :]).all(0)


def parts(t):
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t

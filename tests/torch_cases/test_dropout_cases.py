"""The dropouts as modules, of which torch's module_db has none."""

import copy
import pickle

import pytest
import torch
from cases_of_torch import (
    MODULE_INFOS,
    assert_same_decisions,
    assert_same_module,
)

import normreg
from normreg.models.registry import COUNTERPARTS

DROPOUTS = {
    "Dropout": [(), (5, 5)],
    "Dropout1d": [(5, 5), (4, 5, 5)],
    "Dropout2d": [(4, 5, 3, 3)],
    "Dropout3d": [(5, 3, 3, 3), (4, 5, 3, 3, 3)],
    "AlphaDropout": [(), (5, 5)],
    "FeatureAlphaDropout": [(4, 5, 3), (4, 5, 3, 3)],
}


def test_every_dropout_is_below():
    others = {"SyncBatchNorm", *(original.__name__ for original in MODULE_INFOS)}
    assert set(DROPOUTS) == {original.__name__ for original in COUNTERPARTS} - others


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "inplace"])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_modules(device, name, p, inplace, training):
    ours, theirs = (getattr(library, name)(p, inplace).train(training) for library in (normreg, torch.nn))
    assert_same_module(ours, theirs)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is getattr(normreg, name)
        assert_same_module(twin, theirs)
    for shape in DROPOUTS[name]:
        x = torch.randn(shape, device=device)
        assert theirs(x.to("meta")).shape == ours(x.to("meta")).shape == x.shape
        empty = torch.empty((0, *shape[1:]), device=device)
        assert theirs(empty).shape == ours(empty).shape
        results = [module(x.clone()) for module in (ours, theirs)]
        assert results[0].stride() == results[1].stride()
        if training and p == 0.5:

            def call(module, leaf):
                return module(leaf * 1)

            assert_same_decisions(ours, theirs, call, x)
        else:
            assert torch.equal(*results)

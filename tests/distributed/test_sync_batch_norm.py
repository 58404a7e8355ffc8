"""SyncBatchNorm in worlds of several ranks, which check what is in `ranks_sync_batch_norm.py`, and alone."""

import copy
import pickle

import pytest
import torch
import torch.nn as nn
import worlds

import normreg

SPLIT = ["unequal_and_empty_batches", "unequal_and_empty_batches_in_torch", "groups_of_some_ranks"]
CHECKS = [
    *SPLIT,
    "every_dtype",
    "a_large_mean",
    "all_batches_empty",
    "gradients_of_some",
    "second_derivatives",
    "autograd_sees_what_is_kept",
    "the_truth_table_of_torchs",
    "nothing_waits_for_the_device",
    "one_compiled_graph",
    "the_operator_is_what_it_says",
    "its_decomposition",
    "bad_input_everywhere",
    "ranks_that_disagree",
    "a_rank_that_dies",
]


@pytest.mark.parametrize("check", CHECKS)
def test_split_batches(check):
    worlds.check("ranks_sync_batch_norm", check, 2)


@pytest.mark.parametrize("check", SPLIT)
def test_split_batches_of_four_ranks(check):
    worlds.check("ranks_sync_batch_norm", check, 4)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_alone_it_is_batch_norm(device, training):
    ours, theirs = (library.SyncBatchNorm(3).train(training).to(device) for library in (normreg, nn))
    assert repr(ours) == repr(theirs)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    x = torch.randn(5, 3, 2, device=device)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(twin(x), theirs(x))
    with pytest.raises(ValueError, match="expected at least 2D input"):
        ours(x[0, :, 0])
    with pytest.raises(ValueError, match="number of input channels should be non-zero"):
        ours(x[:, :0])
    act = normreg.SyncBatchNormAct(3, act="relu").train(training).to(device)
    plain = normreg.BatchNormAct2d(3).train(training).to(device)
    images = x[..., None]
    torch.testing.assert_close(act(images, images), plain(images, images))


def test_no_process_group(device):
    x = torch.randn(4, 3, device=device)
    with pytest.raises(RuntimeError, match="init_process_group on every rank"):
        normreg.functional.sync_batch_norm(x, None, None)
    with pytest.raises(RuntimeError, match="init_process_group on every rank"):
        normreg.SyncBatchNorm(3, process_group=object()).to(device)(x)


def test_conversion_keeps_what_a_layer_has():
    model = nn.Sequential(
        nn.BatchNorm1d(3, momentum=None),
        normreg.BatchNorm2d(3, affine=False),
        nn.SyncBatchNorm(3),
        nn.ModuleList([normreg.BatchNormAct3d(3, act="leaky_relu", negative_slope=0.3)]),
        nn.Linear(3, 3),
    )
    model.append(model[0])
    model[1].eval()
    model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    before, text = list(model.state_dict(keep_vars=True).values()), repr(model)
    converted = normreg.convert_sync_batchnorm(model, process_group="group")
    assert converted is model
    assert repr(model) == (
        text.replace("BatchNorm1d", "SyncBatchNorm")
        .replace("BatchNorm2d", "SyncBatchNorm")
        .replace("BatchNormAct3d", "SyncBatchNormAct")
    )
    assert all(a is b for a, b in zip(model.state_dict(keep_vars=True).values(), before, strict=True))
    norms = [m for m in model.modules() if isinstance(m, normreg.SyncBatchNorm)]
    assert len(norms) == 4
    assert all(m.process_group == "group" for m in norms)
    assert model[5] is model[0]
    assert (model[0].training, model[1].training, len(model[0]._forward_hooks)) == (True, False, 1)
    root = nn.BatchNorm2d(3)
    assert type(normreg.SyncBatchNorm.convert_sync_batchnorm(root)) is normreg.SyncBatchNorm
    assert type(root) is nn.BatchNorm2d


class Another(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input).relu()


@pytest.mark.parametrize("layer", [Another(3), nn.LazyBatchNorm2d()], ids=["another forward", "lazy"])
def test_a_conversion_that_would_lose_something(layer):
    model = nn.Sequential(nn.BatchNorm2d(3), layer)
    with pytest.raises(TypeError, match=f"got {type(layer).__name__} at '1'"):
        normreg.convert_sync_batchnorm(model)
    assert type(model[0]) is nn.BatchNorm2d

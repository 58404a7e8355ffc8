"""How many graphs fused models need, and that alike ones share them."""

import pytest
import torch
from fusible import BLOCKS, PostNorm, assert_close, fresh_graphs, made, patterns, step  # noqa: F401
from torch import nn

import normreg
from normreg.models.fusion import backend


@pytest.fixture
def made_of(monkeypatch):
    """The graphs that are made."""
    graphs, as_eager = [], backend.as_eager
    monkeypatch.setattr(backend, "as_eager", lambda graph: graphs.append(graph) or as_eager(graph))
    return graphs


@pytest.mark.parametrize("block", ["post-norm", "conditioned"])
def test_at_most_two_graphs_of_many_batch_sizes(device, made_of, block):
    model, twin, x = made(block, device)
    normreg.replace(model, fuse=True)
    for batch in (2, 3, 5, 8, 1, 4):
        x = torch.randn(batch + 1, 3, 8, device=device, dtype=torch.float64)
        assert_close(step(model, x), step(twin, x))
    assert len(made_of) == 2
    assert patterns(normreg.explain(model, x)) == BLOCKS[block][2]


def test_classes_do_not_use_up_each_others_graphs(device):
    """Dynamo's limit is for each class, as it is where each has a forward of its own."""
    x = torch.randn(3, 8, device=device)
    with torch._dynamo.config.patch(recompile_limit=2):
        for _ in range(4):
            model = type("Own", (PostNorm,), {})().to(device)
            report = normreg.replace(model, fuse=True, example_inputs=x)
            assert patterns(report) == BLOCKS["post-norm"][2]


class Numbered(PostNorm):
    def __init__(self, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx


def test_blocks_that_differ_in_a_number_share_their_graphs(device, made_of):
    """Two graphs for training and two for evaluation, however many blocks: of the first batch, and of any."""
    blocks = nn.Sequential(*map(Numbered, range(12))).to(device)
    for block in blocks:
        normreg.replace(block, fuse=True)
    for batch in (2, 3, 4):
        x = torch.randn(batch, 3, 8, device=device, requires_grad=True)
        blocks.train()(x), blocks.eval()(x)
    assert len(made_of) == 4
    fused = normreg.explain(blocks, x).fused
    assert [fusion.name for fusion in fused] == [str(i) for i in range(12) for _ in range(2)]

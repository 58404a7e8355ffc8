"""What `replace(fuse=True)` reports, changes and leaves: dry runs, selections, examples that fail."""

import pytest
import torch
from fusible import (  # noqa: F401
    BLOCKS,
    BasicBlock,
    DroppingFunctions,
    PostNorm,
    Twice,
    assert_close,
    assert_equal,
    fresh_graphs,
    made,
    patterns,
    step,
    types,
)
from torch import nn

import normreg


def test_a_class_derived_since(device):
    """What fully_shard does to a module: neither replaced again nor restored to another class."""
    model, twin, x = made("post-norm", device)
    normreg.replace(model, fuse=True)
    for module in (model, model.norm1):
        module.__class__ = type(f"FSDP{type(module).__name__}", (type(module),), {})
    classes = types(model)
    assert_close(step(model, x), step(twin, x))
    normreg.replace(model, fuse=True)
    assert types(model) == classes
    report = normreg.restore(model)
    assert [skip.name for skip in report.skipped] == ["norm1"]
    assert {skip.reason for skip in report.skipped} == {
        "its class was derived from normreg's since, as by fully_shard: undo that first"
    }
    assert (type(model), type(model.norm1)) == (classes[""], classes["norm1"])
    assert type(model.norm2) is nn.LayerNorm


def test_again_and_dry(device):
    model, _, x = made("with downsample", device)
    *_, fused, _ = BLOCKS["with downsample"]
    was, buffers = types(model), [b.clone() for b in model.buffers()]
    options = dict(fuse=True, example_inputs=x)
    would = normreg.replace(model, **options, dry_run=True)
    assert (types(model), model._compiled_call_impl) == (was, None)
    assert patterns(would) == fused
    report = normreg.replace(model, **options)
    assert (report.changed, report.fused) == (would.changed, would.fused)
    now = types(model)
    assert normreg.replace(model, **options).changed == normreg.replace(model).changed == ()
    assert types(model) == now
    assert_equal(model.buffers(), buffers)
    normreg.restore(model)
    normreg.replace(model)
    assert patterns(normreg.replace(model, **options)) == fused


def test_without_example_inputs_the_report_says_how_to_see(device):
    model, _, x = made("BasicBlock", device)
    for dry_run in (True, False):
        report = normreg.replace(model, fuse=True, dry_run=dry_run)
        assert report.fused == report.not_fused == ()
        assert "give example_inputs, or ask normreg.explain, to see" in str(report)
    assert patterns(normreg.explain(model, x)) == BLOCKS["BasicBlock"][2]


def test_inputs_by_name_and_in_sequence(device):
    model, _, x = made("post-norm", device)
    for given in (x, (x,), [x, None], dict(x=x, mask=None)):
        assert patterns(normreg.replace(model, fuse=True, example_inputs=given)) == BLOCKS["post-norm"][2]


def test_a_whole_is_restored_with_what_was_fused_inside(device):
    blocks = nn.Sequential(PostNorm(), PostNorm()).to(device)
    for block in blocks:
        normreg.replace(block, fuse=True)
    restored = normreg.restore(blocks)
    assert restored.notes == ("calls are not fused any more: 0, 1",)
    assert [block._compiled_call_impl for block in blocks] == [None, None]


def test_example_inputs_stay_as_they_are(device):
    model, x = Twice(lambda m, x: m.layer_norm(x.add_(m.linear(x)))).to(device), torch.randn(5, 8).to(device)
    given, states = x.clone(), torch.get_rng_state()
    normreg.replace(model, fuse=True, example_inputs=given)
    normreg.explain(model, given)
    assert torch.equal(given, x)
    assert torch.equal(torch.get_rng_state(), states)


def test_a_list_that_a_forward_empties_stays_full(device):
    model, given = Twice(lambda m, xs: m.act(m.norm(xs.pop()))).to(device), [torch.randn(5, 8, device=device)]
    report = normreg.replace(model, fuse=True, example_inputs=(given,))
    assert patterns(report) == patterns(normreg.explain(model, given)) == ["norm -> act"]
    assert len(given) == 1


def test_an_example_that_fails_changes_nothing(device):
    model, _, x = made("post-norm", device)
    was = types(model)
    for given, error in (((x, x, x), TypeError), (x[..., :3], RuntimeError)):
        with pytest.raises(error):
            normreg.replace(model, fuse=True, example_inputs=given)
        assert (types(model), model._compiled_call_impl) == (was, None)


def test_the_report_in_words(device):
    model = nn.Sequential(BasicBlock(3), BasicBlock(3), nn.Flatten()).to(device)
    model[1].bn2.register_forward_hook(lambda module, inputs, output: output.sigmoid_())
    x = torch.randn(2, 3, 4, 4, device=device)
    text = str(normreg.replace(model, fuse=True, example_inputs=x))
    rows = "count  what              in", "-----  ----------------  ----"
    table = "\n".join([*rows, "2      bn1 -> relu       0, 1", "1      bn2 -> + -> relu  0"])
    assert f"3 patterns fused\n{table}" in text
    assert f"3 patterns fused\n{table}" in str(normreg.explain(model, x))


def test_what_is_excluded_is_not_fused(device):
    model, _, x = made("BasicBlock", device)
    report = normreg.replace(model, exclude="bn1", fuse=True, example_inputs=x)
    assert patterns(report) == ["bn2 -> + -> relu"]
    assert type(model.bn1) is nn.BatchNorm2d


def test_functions_of_what_is_excluded(device):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = DroppingFunctions(), DroppingFunctions()

        def forward(self, x):
            return self.b(self.a(x).sigmoid())

    model, x = Both().to(device), torch.randn(3, 8, device=device)
    for options, modules in (
        (dict(exclude="a*"), {"b"}),
        (dict(exclude="a.norm*"), {"a", "b"}),
        (dict(include="b.*"), {"b"}),
        (dict(exclude=lambda name, module: "norm" in name), {"a", "b"}),
    ):
        report = normreg.replace(model, fuse=True, dry_run=True, example_inputs=x, **options)
        assert {fusion.name for fusion in report.fused} == modules
    report = normreg.replace(model, fuse=True, include="b.*", dry_run=True, example_inputs=x)
    assert patterns(report) == ["dropout -> + -> norm2"]

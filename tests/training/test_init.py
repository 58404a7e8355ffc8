"""Presets of initialisation: which layers, with which numbers, and what they report."""

import math

import pytest
import torch
from torch.nn.utils import parametrizations

import normreg
from normreg import init

PRESETS = (init.kaiming_, init.xavier_, init.truncated_normal_)
# of a sample standard deviation over n numbers: 6 standard errors, 6 / sqrt(2 n), for at least 2^14 of them
SAMPLE = 6 / math.sqrt(2 * 2**14)


def assert_std(weight, std):
    assert weight.numel() >= 2**14
    assert abs(weight.std().item() / std - 1) < SAMPLE
    assert abs(weight.mean().item()) < 6 * std / math.sqrt(weight.numel())


def network():
    return torch.nn.Sequential(
        torch.nn.Conv2d(64, 128, 3),
        normreg.BatchNorm2d(128),
        torch.nn.Linear(128, 256, bias=False),
        torch.nn.ConvTranspose2d(64, 128, 2),
        torch.nn.LayerNorm(256),
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_norms_and_biases(preset):
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    report = preset(model)
    for layer in (model[1], model[4]):
        assert (layer.weight == 1).all()
        assert (layer.bias == 0).all()
    assert (model[0].bias == 0).all()
    assert [row.name for row in report.changed] == [name for name, _ in model.named_parameters()]
    assert report.skipped == ()
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_follows_the_generator(preset):
    models = [network(), network()]
    for model in models:
        torch.manual_seed(5)
        preset(model)
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(ours, theirs)


def test_kaiming():
    model = network()
    init.kaiming_(model)
    assert_std(model[0].weight, math.sqrt(2 / (64 * 9)))
    assert_std(model[2].weight, math.sqrt(2 / 128))
    assert_std(model[3].weight, math.sqrt(2 / (64 * 4)))  # 64 channels go in
    init.kaiming_(model, mode="fan_out", nonlinearity="leaky_relu", a=0.5)
    assert_std(model[0].weight, math.sqrt(2 / 1.25 / (128 * 9)))
    assert_std(model[3].weight, math.sqrt(2 / 1.25 / (128 * 4)))
    with pytest.raises(ValueError, match="Mode fan not supported"):
        init.kaiming_(model, mode="fan")


def test_xavier():
    model = network()
    init.xavier_(model, gain=2.0)
    bound = 2 * math.sqrt(6 / (128 + 256))
    assert_std(model[2].weight, bound / math.sqrt(3))
    assert model[2].weight.abs().max() <= bound


def test_truncated_normal():
    model = torch.nn.Sequential(torch.nn.Embedding(300, 64, padding_idx=3), torch.nn.Linear(256, 64))
    init.truncated_normal_(model, std=0.1)
    for layer in model:
        assert layer.weight.abs().max() <= 0.2
        # the standard deviation of a normal distribution between -2 and 2
        assert abs(layer.weight.std().item() / 0.0880 - 1) < 2 * SAMPLE
    assert (model[0].weight[3] == 0).all()
    assert model[0].weight[4].any()


def test_attention():
    attention = torch.nn.MultiheadAttention(128, 4, add_bias_kv=True)
    init.xavier_(attention)
    bound = math.sqrt(6 / (128 + 128))  # of each of three matrices, not of the one that holds them
    for projection in attention.in_proj_weight.detach().chunk(3):
        assert_std(projection, bound / math.sqrt(3))
    init.kaiming_(attention)
    assert_std(attention.in_proj_weight.detach(), math.sqrt(1 / 128))
    assert_std(attention.out_proj.weight.detach(), math.sqrt(1 / 128))
    assert (attention.in_proj_bias == 0).all()
    attention = torch.nn.MultiheadAttention(8, 2, kdim=4, vdim=4)
    changed = {row.name for row in init.xavier_(attention).changed}
    assert changed == {name for name, _ in attention.named_parameters()}


def test_what_is_left_alone_is_named():
    model = torch.nn.Sequential(
        torch.nn.LSTM(3, 4),
        parametrizations.weight_norm(torch.nn.Linear(4, 4)),
        torch.nn.LazyLinear(3),
        torch.nn.Embedding(5, 4),
        torch.nn.ReLU(),
    )
    before = [p.detach().clone() for p in (*model[0].parameters(), *model[1].parameters(), model[3].weight)]
    report = init.kaiming_(model)
    assert [(skip.name, skip.reason.split(":")[0]) for skip in report.skipped] == [
        ("0", "this preset has no rule for it"),
        ("1", "it is parametrized"),
        ("2", "it is lazy"),
        ("3", "this preset has no rule for it"),
    ]
    assert report.changed == ()
    after = (*model[0].parameters(), *model[1].parameters(), model[3].weight)
    assert all(torch.equal(was, now) for was, now in zip(before, after, strict=True))


def test_tied_parameters_are_initialised_once():
    model = torch.nn.Sequential(torch.nn.Embedding(6, 4), torch.nn.Linear(4, 6))
    model[1].weight = model[0].weight
    report = init.truncated_normal_(model)
    assert [row.name for row in report.changed] == ["0.weight", "1.bias"]


def test_the_report_is_a_table():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.PReLU())
    assert str(init.xavier_(model)) == (
        "2 parameters initialised\n"
        "name      class            with                       because it\n"
        "--------  ---------------  -------------------------  --------------------\n"
        "0.weight  torch.nn.Linear  xavier_uniform_(gain=1.0)  is a torch.nn.Linear\n"
        "0.bias    torch.nn.Linear  zeros_()                   is a torch.nn.Linear\n"
        "\n"
        "1 layer left alone\n"
        "name  class           why\n"
        "----  --------------  ------------------------------\n"
        "1     torch.nn.PReLU  this preset has no rule for it"
    )


class Block(torch.nn.Module):
    """A block with torchvision's order of children: the shortcut is last."""

    def __init__(self, norm=normreg.BatchNorm2d):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(4, 4, 1), norm(4)
        self.conv2, self.bn2 = torch.nn.Conv2d(4, 4, 1), norm(4)
        self.downsample = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), norm(4))

    def forward(self, x):
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return branch + self.downsample(x)


def test_zero_residual():
    model = torch.nn.Sequential(Block(), normreg.BatchNorm2d(4), Block(torch.nn.BatchNorm2d)).eval()
    report = init.zero_residual_(model, Block)
    assert [row.name for row in report.changed] == ["0.bn2.weight", "2.bn2.weight"]
    zero = [name for name, parameter in model.named_parameters() if "weight" in name and not parameter.any()]
    assert zero == ["0.bn2.weight", "2.bn2.weight"]
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(model[2](x), model[2].downsample(x))
    assert [
        row.name for row in init.zero_residual_(model[0], (Block,), shortcuts=("bn2", "downsample")).changed
    ] == ["bn1.weight"]


def test_blocks_without_a_norm_are_named():
    report = init.zero_residual_(torch.nn.Sequential(Block(lambda size: torch.nn.Identity())), Block)
    assert [(skip.name, skip.reason) for skip in report.skipped] == [
        ("0", "its branch has no normalisation layer with a weight")
    ]


def test_errors():
    for preset in PRESETS:
        with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got dict"):
            preset({})
    with pytest.raises(
        TypeError, match="expected blocks to be a class of residual blocks, or several, got Block"
    ):
        init.zero_residual_(Block(), Block())
    with pytest.raises(ValueError, match=r"residual blocks of test_init\.Block, and the model has none"):
        init.zero_residual_(torch.nn.Linear(2, 2), Block)

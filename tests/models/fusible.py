"""Modules around the layers that `replace(fuse=True)` fuses, as people write them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normreg


@pytest.fixture(autouse=True)
def fresh_graphs():
    """Forgets the graphs of other tests, whose number counts towards Dynamo's limit."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class BasicBlock(nn.Module):
    """torchvision's BasicBlock, with its in-place sum and its one activation that is called twice."""

    def __init__(self, channels, downsample=None):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def projected():
    return BasicBlock(3, nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)))


def convolutional():
    """An nn.Sequential with an activation of each kind, two of which are not fused."""
    activations = nn.ReLU(inplace=True), nn.SiLU(), nn.LeakyReLU(0.3), nn.GELU(approximate="tanh"), nn.Tanh()
    layers = [(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), act) for act in activations]
    return nn.Sequential(*(layer for group in layers for layer in group), nn.BatchNorm2d(3))


class Functional(nn.Module):
    """Activations as functions and methods, and a sum by a method."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm1d(6) for _ in range(4)])

    def forward(self, x):
        y = F.relu(self.norms[0](x), inplace=True)
        y = self.norms[1](y).relu_()
        y = F.leaky_relu(y.add(self.norms[2](y)), 0.2)
        return torch.relu(torch.add(self.norms[3](y), x))


class PostNorm(nn.Module):
    def __init__(self, p=0.25, norm=nn.LayerNorm):
        super().__init__()
        self.attention, self.linear1, self.linear2 = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.dropout, self.dropout1, self.dropout2 = nn.Dropout(p), nn.Dropout(p), nn.Dropout(p)
        self.activation = nn.GELU()
        self.norm1, self.norm2 = norm(8), norm(8)

    def forward(self, x, mask=None):
        attended = self.attention(x) if mask is None else self.attention(x) * mask
        x = self.norm1(x + self.dropout1(attended))
        hidden = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return self.norm2(self.dropout2(hidden) + x)


class PreNorm(nn.Module):
    def __init__(self, p=0.25, norm=nn.RMSNorm):
        super().__init__()
        self.attention, self.linear1, self.linear2 = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm1, self.norm2 = norm(8), norm(8)
        self.drop1, self.drop2, self.drop3 = nn.Dropout(p), nn.Dropout(p), nn.Dropout(p)

    def forward(self, x):
        x = x + self.drop1(self.attention(self.norm1(x)))
        return x + self.drop3(self.linear2(self.drop2(F.silu(self.linear1(self.norm2(x))))))


class DroppingFunctions(PreNorm):
    """Dropout as functions, whose masks are torch's before and ours when fused."""

    def forward(self, x):
        x = x + F.dropout(self.attention(self.norm1(x)), self.drop1.p, self.training)
        hidden = F.dropout(F.silu(self.linear1(self.norm2(x))), self.drop1.p, self.training)
        return x + F.dropout(self.linear2(hidden), self.drop1.p, self.training)


class WithIdentity(nn.Module):
    """timm's way: a module that does nothing stands between BatchNorm and activation."""

    def __init__(self):
        super().__init__()
        self.bn, self.drop_block, self.act = nn.BatchNorm1d(6), nn.Identity(), nn.ReLU6()

    def forward(self, x):
        return self.act(self.drop_block(self.bn(x)))


class ResnetBlock(nn.Module):
    """diffusers' way: one activation behind two GroupNorms."""

    def __init__(self):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1)
        self.nonlinearity = nn.SiLU()

    def forward(self, x):
        hidden = self.conv1(self.nonlinearity(self.norm1(x)))
        return x + self.conv2(self.nonlinearity(self.norm2(hidden)))


class Conditioned(nn.Module):
    """DiT's way: scales, shifts and gates of the sample, each written in another order."""

    def __init__(self):
        super().__init__()
        self.condition, self.attention, self.mlp = nn.Linear(8, 48), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm1 = nn.LayerNorm(8, elementwise_affine=False)
        self.norm2, self.norm3 = nn.RMSNorm(8), nn.LayerNorm(8)

    def forward(self, x):
        scale1, shift1, gate1, scale2, shift2, gate2 = self.condition(x[:, 0]).chunk(6, dim=1)
        y = self.norm1(x) * (1 + scale1[:, None]) + shift1[:, None]
        x = x + gate1.unsqueeze(1) * self.attention(y)
        y = shift2[:, None] + (scale2.unsqueeze(1) + 1.0) * self.norm2(x)
        x = self.mlp(y) * gate2[:, None] + x
        return torch.mul(self.norm3(x + self.mlp(x)), torch.add(scale1, 1)[:, None])


# name: (constructor, shape of an input, what is fused in training, what in evaluation)
BATCH_NORMS = ["bn1 -> relu", "bn2 -> + -> relu"]
BLOCKS = {
    "BasicBlock": (lambda: BasicBlock(3), (2, 3, 4, 4), BATCH_NORMS, BATCH_NORMS),
    "with downsample": (projected, (2, 3, 4, 4), *[["bn1 -> relu", "downsample.1 -> + -> relu"]] * 2),
    "Sequential": (convolutional, (2, 3, 4, 4), *[["1 -> 2", "4 -> 5", "7 -> 8", "10 -> 11"]] * 2),
    "functions": (
        Functional,
        (5, 6),
        *[["norms.0 -> relu", "norms.1 -> relu_", "norms.2 -> + -> leaky_relu", "norms.3 -> + -> relu"]] * 2,
    ),
    "Identity": (WithIdentity, (5, 6), *[["bn -> act"]] * 2),
    "ResnetBlock": (
        ResnetBlock,
        (2, 4, 4, 4),
        *[["norm1 -> nonlinearity", "norm2 -> nonlinearity"]] * 2,
    ),
    "post-norm": (
        PostNorm,
        (2, 3, 8),
        ["dropout1 -> + -> norm1", "linear1 -> activation -> dropout", "dropout2 -> + -> norm2"],
        ["+ -> norm1", "+ -> norm2"],
    ),
    "pre-norm": (
        PreNorm,
        (2, 3, 8),
        ["drop1 -> + -> norm2", "linear1 -> silu -> drop2", "drop3 -> +"],
        ["+ -> norm2"],
    ),
    "conditioned": (
        Conditioned,
        (2, 3, 8),
        *[["norm1 -> * -> +", "* -> + -> norm2 -> * -> +", "+ -> norm3"]] * 2,
    ),
    "without dropout": (
        lambda: nn.Sequential(Added(nn.LayerNorm), Added(nn.RMSNorm)),
        (2, 6),
        *[["+ -> norm", "+ -> norm"]] * 2,
    ),
}


class Added(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 6), norm(6)

    def forward(self, x):
        return self.norm(x + self.linear(x))


def made(block, device, dtype=torch.float64):
    """A model with nothing at its initial value, its twin with normreg's layers, and an input."""
    make, shape, *_ = BLOCKS[block]
    model = make().to(device, dtype)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    twin = copy.deepcopy(model)
    normreg.replace(twin)
    return model, twin, torch.randn(shape, device=device, dtype=dtype)


def assert_equal(results, expected):
    assert all(torch.equal(result, want) for result, want in zip(results, expected, strict=True))


def types(model):
    return {name: type(module) for name, module in model.named_modules()}


def patterns(report):
    return [fusion.what for fusion in report.fused]


def step(model, x, passed_on=torch.clone):
    """Output, gradients and buffers, of one seed; some models write into what they are passed."""
    torch.manual_seed(5)
    leaves = [x.clone().requires_grad_(), *model.parameters()]
    model.zero_grad()
    y = model(passed_on(leaves[0]))
    y.square().sum().backward()
    gradients = [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]
    return [y.detach(), *gradients, *(b.clone() for b in model.buffers())]


def assert_close(results, expected, units=4096):
    """Allows for sums in another order of terms up to some hundreds; a wrong formula errs more."""
    for result, want in zip(results, expected, strict=True):
        allowed = units * torch.finfo(torch.float64).eps * max(want.abs().max().item(), 1)
        assert (result - want).abs().max().item() <= allowed


class Twice(nn.Module):
    """A module whose forward is the function that it is given."""

    def __init__(self, forward, inner=nn.ReLU):
        super().__init__()
        self.linear, self.norm, self.act = nn.Linear(8, 8), nn.BatchNorm1d(8), inner()
        self.layer_norm, self.drop, self.steps, self.limit = nn.LayerNorm(8), nn.Dropout(0.25), 0, 3
        self.register_buffer("seen", torch.zeros(()))
        self.compute = forward

    def forward(self, x):
        return self.compute(self, x)


def model_of(forward, device):
    model = Twice(forward)
    model.inplace, model.same, model.silu = nn.ReLU(inplace=True), nn.Identity(), nn.SiLU()
    return model.double().to(device)


def assert_left_alone(forward, reason, device, others=()):
    """The model of this forward computes as before, nothing or `others` fused, and says why."""
    model = model_of(forward, device)
    twin, x = copy.deepcopy(model), torch.randn(5, 8, device=device, dtype=torch.float64)
    normreg.replace(twin)
    report = normreg.replace(model, fuse=True, example_inputs=x + 0)
    assert reason in [skip.reason for skip in report.not_fused]
    assert patterns(report) in ([], [*others])
    for m in (model, twin):
        m.eval()
    with torch.no_grad():  # where a value that backward needs is overwritten, torch's raises, too
        assert_close([model(x.clone())], [twin(x.clone())])

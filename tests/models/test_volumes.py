"""`replace` on a network as nnU-Net's: convolutions of volumes, InstanceNorm3d, dropout and LeakyReLU."""

import copy

import pytest
import torch
from support.reference import error, unit
from torch import nn

import normreg


def stage(channels, more, stride):
    return nn.Sequential(
        nn.Conv3d(channels, more, 3, stride, padding=1),
        nn.Dropout3d(0.2),
        nn.InstanceNorm3d(more, affine=True),
        nn.LeakyReLU(0.01),
        nn.Dropout(0.1),
    )


class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([stage(1, 8, 1), stage(8, 16, 2)])
        self.up = nn.ConvTranspose3d(16, 8, 2, 2)
        self.last = nn.Sequential(stage(16, 8, 1), nn.Conv3d(8, 2, 1))

    def forward(self, x):
        wide = self.down[0](x)
        return self.last(torch.cat([wide, self.up(self.down[1](wide))], 1))


def train(model, x, steps=2):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(steps):
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), model.eval()(x).detach()


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last_3d], ids=["contiguous", "channels_last_3d"]
)
def test_trains_as_before(device, launches, memory_format):
    torch.manual_seed(0)
    model = Volumes().to(device, memory_format=memory_format)
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout3d)):
            module.p = 0.0  # masks are others
    x = torch.randn(2, 1, 8, 6, 10, device=device).to(memory_format=memory_format)
    ours, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    normreg.replace(ours)
    columns = train(ours, x), train(model, x), train(exact, x.double())
    for result, before, truth in zip(*columns, strict=True):
        assert error(result, truth) <= 2 * error(before, truth) + 64 * unit(truth, torch.float32)
    assert any("norm" in name for name in launches)


def test_instances_of_volumes_stay_channels_last(device):
    """What a user sets after `replace`, which then is the format of the whole network."""
    torch.manual_seed(0)
    model = Volumes().to(device, memory_format=torch.channels_last_3d)
    normreg.replace(model)
    for module in model.modules():
        if isinstance(module, normreg.InstanceNorm3d):
            module.memory_format = torch.preserve_format
    x = torch.randn(2, 8, 8, 6, 10, device=device).to(memory_format=torch.channels_last_3d)
    norm = model.down[0][2]
    y = norm(x.requires_grad_())
    assert y.stride() == x.stride() == torch.autograd.grad(y.sum(), x)[0].stride()
    torch.testing.assert_close(y, nn.functional.instance_norm(x, weight=norm.weight, bias=norm.bias))


def test_dropout_of_volumes_takes_them_as_they_lie(device, launches):
    """Elementwise dropout of channels_last_3d is one launch each way, beside the layers' around it."""
    torch.manual_seed(0)
    model = Volumes().to(device, memory_format=torch.channels_last_3d)
    normreg.replace(model)
    model.down[0][4](torch.randn(2, 8, 8, 6, 10, device=device).to(memory_format=torch.channels_last_3d))
    assert launches == ["dropout_channels_last_kernel"]

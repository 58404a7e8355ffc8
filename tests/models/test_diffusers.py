"""`replace` on models of the diffusers package, built small and from random weights."""

import copy
import importlib.util

import pytest
import torch
from support.hugging_face import imported
from support.reference import error, unit

import normreg

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:DeprecationWarning", "ignore::FutureWarning"
)
SIZE = 16


@pytest.fixture(autouse=True, scope="module")
def diffusers():
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed")
    with imported("diffusers") as package:
        yield package


def unet():
    settings = dict(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=SIZE,
        norm_num_groups=8,
        attention_head_dim=8,
    )
    image = torch.randn(2, 4, 8, 8)
    inputs = dict(sample=image, timestep=torch.tensor(3), encoder_hidden_states=torch.randn(2, 5, SIZE))
    return "UNet2DConditionModel", settings, inputs


def dit():
    settings = dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8)
    settings |= dict(patch_size=2, norm_type="ada_norm_zero", num_embeds_ada_norm=10)
    inputs = dict(hidden_states=torch.randn(2, 4, 8, 8), timestep=torch.tensor([3, 5]))
    return "DiTTransformer2DModel", settings, inputs | dict(class_labels=torch.tensor([1, 2]))


def flux():
    settings = dict(patch_size=1, in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16)
    settings |= dict(num_attention_heads=2, joint_attention_dim=SIZE, pooled_projection_dim=SIZE)
    inputs = dict(
        hidden_states=torch.randn(2, 6, 8),
        encoder_hidden_states=torch.randn(2, 5, SIZE),
        pooled_projections=torch.randn(2, SIZE),
        timestep=torch.tensor([0.3, 0.5]),
        img_ids=torch.zeros(6, 3),
        txt_ids=torch.zeros(5, 3),
    )
    return "FluxTransformer2DModel", settings | dict(axes_dims_rope=[4, 4, 8]), inputs


# what is replaced, by the function or layer that computes it
MODELS = {
    unet: {"GroupNorm", "LayerNorm", "Dropout"},
    dit: {"ada_layer_norm_zero", "LayerNorm", "Dropout"},
    flux: {
        "ada_layer_norm_zero",
        "ada_layer_norm_zero_single",
        "ada_layer_norm_continuous",
        "RMSNorm",
        "LayerNorm",
    },
}

# what stands at the end of a block and the start of the next one, of which one operator is made
SEAMS = {
    dit: [
        "* -> + -> norm3 -> * -> +",
        "* -> + -> 1.norm1",
        "* -> + -> norm3 -> * -> +",
        "* -> + -> norm_out -> * -> +",
    ],
    flux: ["* -> + -> norm2 -> * -> +", "* -> + -> norm2_context -> * -> +"],
}


def steps(model, inputs, count=2):
    """Losses of a few steps of training, then the model's output."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    losses = []
    for _ in range(count):
        torch.manual_seed(1)
        loss = model(**inputs).sample.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        return torch.stack(losses), model.eval()(**inputs).sample


@pytest.mark.parametrize("how", ["contiguous", "channels_last", "fused"])
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_models_train_as_before(diffusers, make, how):
    torch.manual_seed(0)
    name, settings, inputs = make()
    model = getattr(diffusers, name)(**settings)
    if how == "channels_last":
        model = model.to(memory_format=torch.channels_last)
        inputs = {
            k: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for k, t in inputs.items()
        }
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    ours, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    options = dict(fuse=True, example_inputs=inputs) if how == "fused" else {}
    report = normreg.replace(ours, **options)
    if how == "fused" and make in SEAMS:
        assert [fusion.what for fusion in report.fused] == SEAMS[make]
    assert {change.now.split(".")[-1] for change in report.changed} >= MODELS[make]
    doubles = {k: t.double() if t.is_floating_point() else t for k, t in inputs.items()}
    columns = steps(ours, inputs), steps(model, inputs), steps(exact, doubles)
    for result, before, truth in zip(*columns, strict=True):
        assert error(result, truth) <= 2 * error(before, truth) + 64 * unit(truth, torch.float32)


def test_group_norm_and_silu_are_fused(diffusers):
    """Both of each ResnetBlock2D, and the one in front of the last convolution, in channels_last, too."""
    torch.manual_seed(0)
    name, settings, inputs = unet()
    model = getattr(diffusers, name)(**settings).to(memory_format=torch.channels_last)
    inputs["sample"] = inputs["sample"].to(memory_format=torch.channels_last)
    plain = copy.deepcopy(model)
    report = normreg.replace(model, fuse=["group_norm_act"], example_inputs=inputs)
    assert len([fusion for fusion in report.fused if "nonlinearity" in fusion.what]) == 2 * 8
    assert "conv_norm_out -> conv_act" in {fusion.what for fusion in report.fused}
    columns = steps(model, inputs), steps(plain, inputs)
    for result, before in zip(*columns, strict=True):
        torch.testing.assert_close(result, before, rtol=1e-3, atol=1e-4)

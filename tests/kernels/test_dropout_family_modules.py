"""What forms of dropout say of unusual numbers of dimensions, DropPath, and the modules."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from dropout_forms import generator_of

import normreg
from normreg.kernels import cpu


def said(call, *arguments, **options):
    """(the result's type and shape or the exception, the warnings)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            y = call(*arguments, **options)
            outcome = (type(y), y.shape, y.dtype)
        except Exception as raised:
            outcome = (type(raised), str(raised))
    return outcome, [(w.category, str(w.message)) for w in caught]


FUNCTIONS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")


@pytest.mark.parametrize("given", [False, True], ids=["default generator", "generator"])
@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "torch"])
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "inplace"])
@pytest.mark.parametrize("dims", range(7))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_number_of_dimensions(device, monkeypatch, name, dims, inplace, kernel, given):
    """Results, errors and warnings are torch's, its words included."""
    if not kernel:
        device = torch.device("cpu")
        monkeypatch.setattr(cpu, "KERNELS", None)
    for p, training in itertools.product((0.5, 1.0, 0.0, 1.5), (True, False)):
        options = dict(p=p, training=training, inplace=inplace)
        x, other = torch.ones(2, *(2, 3, 2, 2, 2, 2)[:dims], device=device).unbind()
        theirs = said(getattr(F, name), other.clone(), **options)
        x = x.clone()
        ours = said(
            getattr(normreg.functional, name),
            x,
            **options,
            **(dict(generator=torch.Generator(device)) if given else {}),
        )
        assert ours == theirs, options
        if ours[0][0] is torch.Tensor:
            assert x.shape == ours[0][1]


def test_dropout2d_of_three_dimensions_takes_them_for_samples_channels_and_positions(device):
    """torch's historical reading, of which it warns; dropout1d has the same mask."""
    x = torch.randn(4, 5, 6, device=device)
    with pytest.warns(UserWarning, match="assuming that channel-wise 1D dropout behavior is desired"):
        y = normreg.functional.dropout2d(x, 0.5, generator=generator_of(device))
    assert torch.equal(y, normreg.functional.dropout1d(x, 0.5, generator=generator_of(device)))


def test_an_odd_number_of_dimensions_in_dropout3d(device):
    """torch takes all but five dimensions for one sample's."""
    x = torch.randn(40, 5, 6, device=device)
    with pytest.warns(UserWarning, match="dropout3d: Received a 3-D input"):
        y = normreg.functional.dropout3d(x, generator=generator_of(device))
    one = normreg.functional.dropout1d(x.flatten(1), generator=generator_of(device))
    assert torch.equal(y.flatten(1), one)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_drop_path_outside_its_range(device, launches, p):
    """timm's error is torch's, of 1 - p."""
    x = torch.ones(3, 4, device=device)
    with pytest.raises(ValueError, match=rf"^expected drop_prob to be between 0 and 1, got {p}: pass a"):
        normreg.functional.drop_path(x, p, True)
    assert launches == []


def test_drop_path_is_timms():
    module = normreg.DropPath(0.1234)
    assert repr(module) == "DropPath(drop_prob=0.123)"
    assert (module.drop_prob, module.scale_by_keep) == (0.1234, True)
    assert repr(normreg.DropPath()) == "DropPath(drop_prob=0.000)"
    assert not normreg.DropPath(0.5, scale_by_keep=False).scale_by_keep
    assert list(module.state_dict()) == list(module.parameters()) == []


def test_drop_path_follows_training_and_its_attributes(device):
    x = torch.ones(200, 3, device=device)
    module = normreg.DropPath(0.5)
    assert set(module(x).unique().tolist()) == {0.0, 2.0}
    module.scale_by_keep = False
    assert set(module(x).unique().tolist()) == {0.0, 1.0}
    module.drop_prob = 0.0
    assert module(x) is x
    module.drop_prob = 0.5
    assert module.eval()(x) is x
    assert normreg.functional.drop_path(x) is x
    assert normreg.functional.drop_path(x, 0.5) is x


@pytest.mark.parametrize("name", ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"])
def test_modules_in_place(device, name):
    x = torch.ones((4, 5, 2, 2, 2)[: {"1": 3, "2": 4}.get(name[-2], 5)], device=device)
    for library in (torch.nn, normreg):
        given = x.clone()
        assert getattr(library, name)(inplace=True)(given) is given
        assert set(given.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("name", ["AlphaDropout", "FeatureAlphaDropout"])
def test_alpha_modules_leave_their_input_as_torchs_do(device, name):
    x = torch.ones(20, 5, device=device)
    for library in (torch.nn, normreg):
        module = getattr(library, name)(inplace=True)
        y = module(x)
        assert y is not x
        assert (x == 1).all()
        assert (y != 1).any()
        assert repr(module) == f"{name}(p=0.5, inplace=True)"

"""Functions and layers take their arguments as torch's do: by position, by name, and not at all."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from drawn import st
from hypothesis import given
from support.reference import outcome

import normreg
from normreg import functional

pytestmark = pytest.mark.filterwarnings("ignore:dropout:UserWarning")
X = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
CHANNELS, ROW = torch.ones(4), torch.ones(3)
# values that fit the parameters of these names
FITTING = {
    "input": X,
    "x": X,
    "num_groups": 2,
    "eps": 0.1,
    "momentum": 0.2,
    "training": True,
    "p": 0.0,
    "inplace": False,
    "use_input_stats": True,
    "running_mean": CHANNELS,
    "running_var": CHANNELS,
    "num_features": 4,
    "num_channels": 4,
    "normalized_shape": (3,),
    "affine": True,
    "track_running_stats": True,
    "elementwise_affine": True,
    "bias": True,
    "device": None,
    "dtype": None,
    "process_group": None,
}
FUNCTIONS = sorted(name for name in functional.__all__ if hasattr(F, name))
LAYERS = sorted(
    name
    for name in normreg.__all__
    if isinstance(getattr(normreg, name), type) and issubclass(getattr(normreg, name), torch.nn.Module)
    if hasattr(torch.nn, name)
)


def torchs_parameters(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


@st.composite
def bindings(draw, names):
    """(by position, by name): names of parameters, some left out, given twice, or not torch's."""
    by_position = names[: draw(st.integers(0, len(names)))]
    others = draw(st.permutations(names[len(by_position) :]))
    by_name = list(others[: draw(st.integers(0, len(others)))])
    if draw(st.integers(0, 3)) == 0:
        by_name += draw(st.sampled_from([["nonsense"], names[:1], ["self"]]))
    surplus = draw(st.integers(0, 6)) == 0
    return [*by_position, *["surplus"] * surplus], [*dict.fromkeys(by_name)]


def value(parameter, name):
    """What fits a parameter of the function or layer of this name."""
    if parameter in ("weight", "bias") and name in FUNCTIONS:
        found = ROW if name in ("layer_norm", "rms_norm") else CHANNELS
    else:
        found = FITTING.get(parameter)
    return found.clone() if isinstance(found, torch.Tensor) else found


def outcomes_of(name, libraries, by_position, by_name):
    """What torch's function or class and ours make of them: both return, or raise the same kind."""
    found = []
    for library in libraries:
        positional = [value(parameter, name) for parameter in by_position]
        named = {parameter: value(parameter, name) for parameter in by_name}
        torch.manual_seed(0)
        found.append(outcome(getattr(library, name), *positional, **named))
    theirs, ours = found
    if isinstance(theirs, Exception) or isinstance(ours, Exception):
        assert type(ours) is type(theirs), f"{ours!r}, torch's {theirs!r}"
    return theirs, ours


@pytest.mark.parametrize("name", FUNCTIONS)
@given(data=st.data())
def test_functions(name, data):
    bound = data.draw(bindings(torchs_parameters(getattr(F, name))))
    theirs, ours = outcomes_of(name, (F, functional), *bound)
    if isinstance(theirs, torch.Tensor):
        drawn = "dropout" in name and "p" not in {*bound[0], *bound[1]}
        torch.testing.assert_close(*(t.shape if drawn else t for t in (ours, theirs)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_torch_lacks_is_keyword_only(name):
    ours, theirs = (inspect.signature(getattr(library, name)).parameters for library in (functional, F))
    assert [*ours][: len(theirs)] == [*theirs]
    for parameter, torchs in theirs.items():
        assert ours[parameter].kind is torchs.kind
        assert ours[parameter].default == torchs.default
    assert all(ours[extra].kind is inspect.Parameter.KEYWORD_ONLY for extra in [*ours][len(theirs) :])


@given(name=st.sampled_from(LAYERS), data=st.data())
def test_layers(name, data):
    bound = data.draw(bindings(torchs_parameters(getattr(torch.nn, name))))
    theirs, ours = outcomes_of(name, (torch.nn, normreg), *bound)
    if isinstance(theirs, torch.nn.Module):
        assert ours.extra_repr() == theirs.extra_repr()
        shapes = [{key: t.shape for key, t in layer.state_dict().items()} for layer in (ours, theirs)]
        assert shapes[0] == shapes[1]


CALLS = [((X,), {}), ((), {"input": X}), ((), {}), ((X, X), {}), ((X,), {"nonsense": 1}), ((), {"x": X})]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("positional", "named"), CALLS)
def test_calls_of_layers(name, positional, named):
    """A layer is called with one input, by position or as `input`."""
    arguments = {"LayerNorm": (3,), "RMSNorm": (3,), "GroupNorm": (2, 4)}.get(name, (4,))
    made = [
        getattr(library, name)(*(() if "Dropout" in name else arguments)).eval()
        for library in (torch.nn, normreg)
    ]
    theirs, ours = (outcome(layer, *positional, **named) for layer in made)
    assert type(ours) is type(theirs), f"{ours!r}, torch's {theirs!r}"

"""Every public signature is annotated, so that an editor shows it and mypy checks its callers."""

import inspect

import pytest
import torch

import normreg

PUBLIC = {
    f"{room.__name__}.{name}": getattr(room, name)
    for room in (normreg, normreg.functional, normreg.nn, normreg.init)
    for name in room.__all__
    if not inspect.ismodule(getattr(room, name))
}


def unannotated(function):
    """Names of the parameters without a type, and "return"."""
    signature = inspect.signature(function)
    missing = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
    return missing + ["return"] * (signature.return_annotation is signature.empty)


def functions_of(public):
    """The function itself, or those of a class that are not inherited from torch: constructor and forward."""
    if not inspect.isclass(public):
        return [public]
    found = [getattr(public, name, None) for name in ("__init__", "forward")]
    return [function for function in found if function and function.__module__.startswith("normreg")]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_signature_is_annotated(name):
    assert {function.__qualname__: unannotated(function) for function in functions_of(PUBLIC[name])} == {
        function.__qualname__: [] for function in functions_of(PUBLIC[name])
    }


def test_what_has_no_type_is_seen():
    class Layer(torch.nn.Linear):
        def forward(self, input, *others: int, scale: float = 1.0):
            pass

    Layer.forward.__module__ = "normreg.nn.layer"
    assert functions_of(Layer) == [Layer.forward]
    assert unannotated(Layer.forward) == ["input", "return"]
    assert functions_of(unannotated) == [unannotated]


LAYERS = {name: layer for name, layer in PUBLIC.items() if inspect.isclass(layer) and "nn." in name}


@pytest.mark.parametrize("name", LAYERS)
def test_constructors_are_explicit(name):
    """No `*arguments` and `**options` behind which an editor has nothing to show."""
    kinds = {parameter.kind for parameter in inspect.signature(LAYERS[name]).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def test_p_has_one_default():
    """torch's 0.5 for what drops elements, timm's 0 for what drops samples."""
    defaults = {}
    for name, public in PUBLIC.items():
        for parameter in inspect.signature(public).parameters.values():
            if parameter.name in ("p", "drop_prob"):
                defaults[name] = parameter.name, parameter.default
    assert len(defaults) > 20
    assert set(defaults.values()) == {("p", 0.5), ("drop_prob", 0.0)}

"""`replace` chooses layers by their names as fnmatch does, in any tree of modules."""

from fnmatch import fnmatchcase

import pytest
import torch.nn as nn
from drawn import st
from hypothesis import assume, given

import normreg

names = st.sampled_from(["norm", "norm1", "fc", "block", "0", "10", "ln_2", "Norm"])
leaves = st.sampled_from(["norm", "linear"])
deeper = st.recursive(
    leaves, lambda inner: st.dictionaries(names, inner, min_size=1, max_size=4), max_leaves=12
)
trees = st.dictionaries(names, deeper, min_size=1, max_size=5)


@st.composite
def patterns(draw, names):
    """Patterns of which each matches a name: names with some of their parts, or characters, left open."""
    found = []
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
        parts = name.split(".")
        for position in draw(st.sets(st.integers(0, len(parts) - 1))):
            part = parts[position]
            parts[position] = draw(
                st.sampled_from(["*", f"{part[0]}*", f"?{part[1:]}", f"[!x]{part[1:]}", f"*{part[-1]}"])
            )
        found.append(".".join(parts[draw(st.integers(0, 1)) :]) if draw(st.booleans()) else ".".join(parts))
    return found


def built(tree):
    if isinstance(tree, str):
        return nn.LayerNorm(2) if tree == "norm" else nn.Linear(2, 2)
    model = nn.Module()
    for name, child in tree.items():
        model.add_module(name, built(child))
    return model


def chosen(model):
    return {name for name, layer in model.named_modules() if type(layer) is normreg.LayerNorm}


def matching(names, given):
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in given)}


@given(data=st.data())
def test_patterns(data):
    """A pattern that matches nothing is refused, and changes nothing."""
    model = built(data.draw(trees))
    norms = [name for name, layer in model.named_modules() if isinstance(layer, nn.LayerNorm)]
    assume(norms)
    include, exclude = data.draw(patterns(norms)), data.draw(patterns(norms) | st.just([]))
    matched = [[name for name in norms if fnmatchcase(name, pattern)] for pattern in include + exclude]
    if not all(matched):
        with pytest.raises(ValueError, match=r"expected (include|exclude)"):
            normreg.replace(model, include=include, exclude=exclude)
        assert chosen(model) == set()
        return
    normreg.replace(model, include=include, exclude=exclude or None)
    assert chosen(model) == matching(norms, include) - matching(norms, exclude)

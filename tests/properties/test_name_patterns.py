"""`replace` chooses layers by their names as fnmatch does, in any tree of modules."""

from fnmatch import fnmatchcase

import torch.nn as nn
from drawn import st
from hypothesis import given

import normreg

names = st.sampled_from(["norm", "norm1", "fc", "block", "0", "10", "ln_2", "Norm"])
leaves = st.sampled_from(["norm", "linear"])
trees = st.recursive(
    leaves, lambda deeper: st.dictionaries(names, deeper, min_size=1, max_size=4), max_leaves=12
)
parts = st.sampled_from(
    ["norm", "norm*", "*", "?", "block", "block.*", "*.norm", "[0-9]*", "ln_[!0]", "Norm", "10", "fc"]
)
patterns = st.lists(st.lists(parts, min_size=1, max_size=3).map(".".join), min_size=1, max_size=3)


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


@given(tree=trees.filter(lambda tree: isinstance(tree, dict)), include=patterns, exclude=patterns)
def test_patterns(tree, include, exclude):
    """A pattern that matches nothing is refused, and changes nothing."""
    model = built(tree)
    norms = {name for name, layer in model.named_modules() if isinstance(layer, nn.LayerNorm)}
    try:
        normreg.replace(model, include=include, exclude=exclude)
    except ValueError:
        assert chosen(model) == set()
        return
    assert chosen(model) == matching(norms, include) - matching(norms, exclude)

"""What a layer is: by torch's class that it derives from, and by its name where none says."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import normreg
from normreg import init
from normreg.training.kinds import OTHERS, kind_of

# how each class of torch that owns parameters, and is no norm, is made
LAYERS = {
    "Linear": (3, 4),
    "Bilinear": (2, 3, 4),
    "Conv1d": (2, 3, 2),
    "Conv2d": (2, 3, 2),
    "Conv3d": (2, 3, 2),
    "ConvTranspose1d": (2, 3, 2),
    "ConvTranspose2d": (2, 3, 2),
    "ConvTranspose3d": (2, 3, 2),
    "LazyLinear": (3,),
    "LazyConv2d": (3, 2),
    "Embedding": (3, 4),
    "EmbeddingBag": (3, 4),
    "RNN": (3, 4),
    "LSTM": (3, 4),
    "GRU": (3, 4),
    "RNNCell": (3, 4),
    "LSTMCell": (3, 4),
    "GRUCell": (3, 4),
    "MultiheadAttention": (4, 2),
    "PReLU": (),
}
NORMS = {
    "BatchNorm1d": (4,),
    "InstanceNorm2d": (4, 1e-5, 0.1, True),
    "SyncBatchNorm": (4,),
    "LayerNorm": (4,),
    "RMSNorm": (4,),
    "GroupNorm": (2, 4),
}


def derived(name, base):
    return type(name, (getattr(nn, base),), {})


def decayed(model):
    """Names of the parameters that are."""
    return [row.name for row in normreg.parameter_groups(model, 0.1).rows if row.weight_decay]


@pytest.mark.parametrize("base", LAYERS)
@pytest.mark.parametrize("name", ["ConvNorm", "RMSNorm", "BatchNormAct2d"])
def test_a_layer_of_torch_is_one_whatever_its_name(name, base):
    layer = derived(name, base)(*LAYERS[base])
    assert kind_of(layer) == (False, f"is a torch.nn.{base}")
    assert decayed(layer) == [n for n, _ in layer.named_parameters() if "bias" not in n]


@pytest.mark.parametrize("base", NORMS)
def test_a_norm_of_torch_is_one_whatever_its_name(base):
    layer = derived("Linear", base)(*NORMS[base])
    assert kind_of(layer) == (True, f"is a torch.nn.{base}")
    assert decayed(layer) == []


def test_every_class_of_torch_with_parameters_is_known():
    """The others, of which blocks such as Transformer consist of these, own none."""
    owning = {cls for name in (*LAYERS, *NORMS) for cls in [getattr(nn, name)]}
    known = (*OTHERS, *[getattr(nn, name) for name in NORMS], nn.modules.batchnorm._NormBase)
    for name, cls in vars(nn).items():
        if (
            isinstance(cls, type)
            and issubclass(cls, nn.Module)
            and "weight" in vars(cls).get("__annotations__", {})
        ):
            assert issubclass(cls, known), name
    assert all(issubclass(cls, known) for cls in owning)


class Owner(nn.Module):
    def __init__(self, *shapes):
        super().__init__()
        self.parts = [f"part{i}" for i in range(len(shapes))]
        for name, shape in zip(self.parts, shapes):
            self.register_parameter(name, nn.Parameter(torch.ones(shape)))


class GlobalResponseNorm(Owner):
    pass


class IdentityNorm(nn.Identity):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


def test_names_decide_where_only_vectors_are_owned():
    """Those of one dimension longer than 1, wherever it is."""
    for shapes in (((4,),), ((1, 4, 1, 1), (4,)), ((),), ((1, 1),)):
        assert kind_of(GlobalResponseNorm(*shapes)) == (True, "is named GlobalResponseNorm")
    for shapes in (((4, 4),), ((4,), (4, 1, 2))):
        assert not kind_of(GlobalResponseNorm(*shapes)).is_norm
    assert kind_of(IdentityNorm()).is_norm
    assert not kind_of(Owner((4,))).is_norm
    # the vector of weight_norm beside its matrix
    layer = GlobalResponseNorm((4, 4))
    assert not kind_of(parametrizations.weight_norm(layer, "part0")).is_norm


class ConvNorm(nn.Conv1d):
    pass


class Both(nn.Conv1d, nn.LayerNorm):
    """What torch's first class says."""


def test_the_first_of_torchs_classes_decides():
    assert kind_of(Both.__new__(Both)) == (False, "is a torch.nn.Conv1d")


def test_convolutions_named_norm_are_initialised_as_such():
    """And by register_no_decay they are not decayed all the same."""
    model = nn.Sequential(ConvNorm(64, 128, 3), nn.LayerNorm(4))
    report = init.kaiming_(model)
    assert not (model[0].weight == 1).any()
    assert [(row.name, row.rule) for row in report.changed] == [
        ("0.weight", "is a torch.nn.Conv1d"),
        ("0.bias", "is a torch.nn.Conv1d"),
        ("1.weight", "is a torch.nn.LayerNorm"),
        ("1.bias", "is a torch.nn.LayerNorm"),
    ]
    assert decayed(model) == ["0.weight"]


def test_what_is_registered_has_the_last_word(monkeypatch):
    monkeypatch.setattr("normreg.training.parameter_groups._registered", {ConvNorm})
    assert decayed(ConvNorm(2, 3, 1)) == []


def test_groups_print_as_a_table():
    model = nn.Sequential(
        ConvNorm(2, 3, 1), nn.LayerNorm(3), IdentityNorm(), Owner((2, 2)), nn.Embedding(2, 2)
    )
    groups = normreg.parameter_groups(model, 0.1, no_decay=[nn.Embedding, "3.*"])
    assert isinstance(groups, list)
    assert [{*group} for group in groups] == [{"params", "weight_decay"}] * 2
    table = (
        "7 parameters in 2 groups\n"
        "count  class                    weight decay  because it                        name\n"
        "1      test_kinds.ConvNorm      0.1           is a torch.nn.Conv1d              0.weight\n"
        "1      test_kinds.ConvNorm      0             is a bias                         0.bias\n"
        "2      torch.nn.LayerNorm       0             is a torch.nn.LayerNorm           1.weight, 1.bias\n"
        "1      test_kinds.IdentityNorm  0             is named IdentityNorm             2.weight\n"
        "1      test_kinds.Owner         0             is in no_decay, '3.*'             3.part0\n"
        "1      torch.nn.Embedding       0             is in no_decay, torch.nn.Embedding  4.weight"
    )
    assert [line.split() for line in str(groups).splitlines() if "---" not in line] == [
        line.split() for line in table.splitlines() if "---" not in line
    ]
    assert repr(groups) == str(groups)
    torch.optim.AdamW(groups, lr=0.1).step()


def test_a_tied_parameter_is_by_the_rule_that_leaves_it_out():
    model = nn.Sequential(nn.Linear(4, 4), Owner((4, 4)))
    model[1].part0 = model[0].weight
    (weight, _) = normreg.parameter_groups(model, 0.1, no_decay="1.part0").rows
    assert (weight.name, weight.kind, weight.weight_decay) == ("0.weight", "test_kinds.Owner", 0)
    assert weight.rule == "is in no_decay, '1.part0'"

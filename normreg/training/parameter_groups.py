"""`parameter_groups`: which parameters an optimizer decays, by the class of the layer that owns them."""

import fnmatch
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.nn.utils.parametrize import ParametrizationList

from normreg.models.checks import check_is_module
from normreg.models.naming import counted
from normreg.models.registry import class_name
from normreg.models.tables import Table, Tables, grouped
from normreg.training.checks import check_weight_decay
from normreg.training.kinds import kind_of

BIAS_NAME = re.compile(r"(^|_)bias(_|$)")
_registered: set[type[torch.nn.Module]] = set()

NoDecay = type[torch.nn.Module] | str
ModuleClass = TypeVar("ModuleClass", bound=type[torch.nn.Module])


@dataclass(frozen=True)
class Grouped:
    """A parameter under its first name, the weight decay that it gets, and the rule that says so."""

    name: str
    kind: str
    weight_decay: float
    rule: str


class ParameterGroups(Tables, list[dict[str, Any]]):
    """The groups, as optimizers take them. Printed, they are a table of the rules and the parameters by them.

    Attributes:
        rows: the parameters in the order of `model.named_parameters()`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]] = (), rows: Iterable[Grouped] = ()) -> None:
        super().__init__(groups)
        self.rows = tuple(rows)

    def tables(self) -> Iterable[Table]:
        cells = [(row.name, row.kind, f"{row.weight_decay:g}", row.rule) for row in self.rows]
        heading = f"{counted(self.rows, 'parameter')} in {counted(self, 'group')}"
        return [grouped(Table(heading, ("name", "class", "weight decay", "because it"), cells))]


def is_module_class(cls: Any) -> bool:
    """Whether this is a class of modules."""
    return isinstance(cls, type) and issubclass(cls, torch.nn.Module)


def register_no_decay(cls: ModuleClass) -> ModuleClass:
    """Makes `parameter_groups` leave out the parameters that modules of this class own; a decorator, too.

    Raises TypeError where `cls` is not a subclass of torch.nn.Module.
    """
    if not is_module_class(cls):
        raise TypeError(
            f"expected a subclass of torch.nn.Module, got {cls!r}: pass the class, as in type(layer)"
        )
    _registered.add(cls)
    return cls


def _owned_parameters(
    model: torch.nn.Module,
) -> Iterator[tuple[str, torch.nn.Module, str, torch.nn.Parameter]]:
    """(full name, owner, name in the owner, parameter) under every name that a parameter has."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            full_name = f"{path}.{name}" if path else name
            if isinstance(module, ParametrizationList):
                owner, _, name = path.rpartition("parametrizations.")
                yield full_name, modules[owner.rstrip(".")], name, parameter
            else:
                yield full_name, module, name, parameter


def _split(no_decay: Any) -> tuple[tuple[type, ...], list[str]]:
    """The classes and the patterns of names among what the caller gave."""
    one = isinstance(no_decay, (str, type)) or not hasattr(no_decay, "__iter__")
    given = [no_decay] if one else list(no_decay)
    for entry in given:
        if not isinstance(entry, str) and not is_module_class(entry):
            raise TypeError(
                f"expected no_decay to hold subclasses of torch.nn.Module and names of parameters, got "
                f"{entry!r}: pass a class, such as torch.nn.Embedding, or a name, such as 'pos_embed'"
            )
    return tuple(c for c in given if isinstance(c, type)), [n for n in given if isinstance(n, str)]


def parameter_groups(
    model: torch.nn.Module, weight_decay: float, *, no_decay: NoDecay | Iterable[NoDecay] = ()
) -> ParameterGroups:
    r"""Groups for any torch optimizer: one with the weight decay and one, of norms and biases, without.

    Not decayed are the parameters owned by a normalisation layer, every bias, and what `no_decay` names. A
    normalisation layer is one of torch's or normreg's or a subclass of one, or one that `register_no_decay`
    has been given. Where a class derives from no other layer of torch that owns parameters, such as Linear
    or a convolution, and owns vectors alone, its name decides, as those of timm's and transformers' do
    (`LayerNorm2d`, `LlamaRMSNorm`). All others are decayed, embeddings among them.

    Args:
        model: a torch.nn.Module.
        weight_decay: a finite number of at least 0.
        no_decay: further classes of layers, such as torch.nn.Embedding, and full names of parameters, in
            which * stands for anything, such as "*.pos_embed"; or one of either.

    Returns a list of one or two dicts with "params" and "weight_decay", which prints as a table of the rule
    that each parameter is by; a group without parameters is left out. Each parameter is in one group, once,
    in the order of `model.named_parameters()`. A tied parameter is not decayed where one of its owners is
    not: with no_decay=torch.nn.Embedding, an output layer that is tied to the embedding is not. Frozen
    parameters are kept, as by `model.parameters()`: an optimizer skips what has no gradient, and what is
    unfrozen later is already there.

    Raises TypeError for what is not a module, a number, a class of layers or a name; ValueError for a
    negative or non-finite weight_decay, a model without parameters, and a name that no parameter has.

    Equivalent, where the layers are torch's::

        owners = [m for m in model.modules() if isinstance(m, (nn.LayerNorm, nn.GroupNorm))]    # and so on
        excluded = {p for m in owners for p in m.parameters(recurse=False)}
        excluded |= {p for name, p in model.named_parameters() if name.endswith("bias")}
        decayed = [p for p in model.parameters() if p not in excluded]
        groups = [{"params": decayed, "weight_decay": weight_decay},
                  {"params": list(excluded), "weight_decay": 0.0}]

    Source: Goyal et al., "Accurate, Large Minibatch SGD" (2017), arXiv 1706.02677; He et al., "Bag of Tricks"
    (2018), arXiv 1812.01187; https://docs.pytorch.org/docs/stable/optim.html#per-parameter-options
    """
    check_is_module(model)
    check_weight_decay(weight_decay)
    classes, patterns = _split(no_decay)
    parameters: dict[int, torch.nn.Parameter] = {}
    rows: dict[int, Grouped] = {}
    excluded, names = set(), []
    for full_name, owner, name, parameter in _owned_parameters(model):
        key = id(parameter)
        parameters[key] = parameter
        names.append(full_name)
        decays, rule = _rule(full_name, owner, name, classes, patterns)
        if key not in rows or not (decays or key in excluded):
            first = rows[key].name if key in rows else full_name
            decay = float(weight_decay) if decays else 0.0
            rows[key] = Grouped(first, class_name(type(owner)), decay, rule)
        if not decays:
            excluded.add(key)
    if not parameters:
        raise ValueError("expected a model with parameters, got one without: pass the model that owns them")
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(
                f"expected no_decay to name parameters of the model, got {pattern!r}, which none has: "
                f"`model.named_parameters()` lists them, and * stands for anything"
            )
    groups = [
        dict(
            params=[p for p in parameters.values() if (id(p) in excluded) is out],
            weight_decay=0.0 if out else weight_decay,
        )
        for out in (False, True)
    ]
    return ParameterGroups([group for group in groups if group["params"]], rows.values())


def _rule(
    full_name: str, owner: torch.nn.Module, name: str, classes: tuple[type, ...], patterns: list[str]
) -> tuple[bool, str]:
    """Whether a parameter of this owner is decayed, and the rule that says so; the caller's come first."""
    for pattern in patterns:
        if fnmatch.fnmatchcase(full_name, pattern):
            return False, f"is in no_decay, {pattern!r}"
    for given, of_which in (("no_decay", classes), ("register_no_decay", tuple(_registered))):
        for cls in of_which:
            if isinstance(owner, cls):
                return False, f"is in {given}, {class_name(cls)}"
    is_norm, rule = kind_of(owner)
    if is_norm:
        return False, rule
    return (False, "is a bias") if BIAS_NAME.search(name) else (True, rule)

"""Initialisation of whole models by the class of their layers, with the functions of `torch.nn.init`.

Each preset works in place, follows torch's generator, and returns an `Initialisation`: what it touched, which
prints as a table. Every preset of weights sets the weight of normalisation layers to 1, and all biases to 0.
A parameter is initialised once, where it is met first. Layers that a preset has no rule for, parametrized
ones, and lazy ones that have not seen an input are left alone and named in the table.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import init

from normreg.models.checks import check_is_module
from normreg.models.naming import ROOT, counted
from normreg.models.registry import class_name
from normreg.models.report import Skip
from normreg.models.tables import Table, Tables, grouped
from normreg.training.kinds import kind_of
from normreg.training.parameter_groups import is_module_class

__all__ = ["kaiming_", "truncated_normal_", "xavier_", "zero_residual_"]

CONVOLUTIONS = torch.nn.modules.conv._ConvNd
TRANSPOSED = torch.nn.modules.conv._ConvTransposeNd
EMBEDDINGS = (torch.nn.Embedding, torch.nn.EmbeddingBag)
OUTPUT_OF_ATTENTION = torch.nn.modules.linear.NonDynamicallyQuantizableLinear  # the class of its out_proj
SHORTCUTS = ("downsample", "shortcut")


@dataclass(frozen=True)
class Initialised:
    """A parameter that a preset set."""

    name: str
    kind: str
    how: str
    rule: str  # that tells what its layer is


@dataclass(frozen=True, repr=False)
class Initialisation(Tables):
    """What a preset did. Printed, it is a table of each kind.

    Attributes:
        changed: the parameters that were set.
        skipped: layers that were left alone, with the reason.
        verbose: whether each entry has a line of its own; else those that differ in nothing but their
            names share one, in which * stands for numbers.
    """

    changed: tuple[Initialised, ...]
    skipped: tuple[Skip, ...]
    verbose: bool = False

    def tables(self) -> Iterable[Table]:
        heading = f"{counted(self.changed, 'parameter')} initialised"
        tables = (
            Table(heading, ("name", "class", "with", "because it"), self.changed),
            Table(f"{counted(self.skipped)} left alone", ("name", "class", "why"), self.skipped),
        )
        return tables if self.verbose else map(grouped, tables)


class _Rules:
    """Applies functions of `torch.nn.init` to parameters, each once, and notes it."""

    def __init__(self) -> None:
        self.changed: list[Initialised] = []
        self.skipped: list[Skip] = []
        self.met: set[int] = set()

    def set(
        self, path: str, module: torch.nn.Module, name: str, initialise: Callable[..., Any], **options: Any
    ) -> None:
        """Calls initialise(parameter, **options) unless the parameter was met before."""
        parameter = getattr(module, name, None)
        if parameter is None or id(parameter) in self.met:
            return
        self.met.add(id(parameter))
        initialise(parameter, **options)
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        how = f"{initialise.__name__}({given})"
        full_name, kind = f"{path}.{name}" if path else name, class_name(type(module))
        self.changed.append(Initialised(full_name, kind, how, kind_of(module).rule))

    def skip(self, path: str, module: torch.nn.Module, reason: str) -> None:
        self.skipped.append(Skip(path or ROOT, class_name(type(module)), reason))

    def report(self) -> Initialisation:
        return Initialisation(tuple(self.changed), tuple(self.skipped))


def xavier_uniform_of_each(weight: torch.Tensor, gain: float) -> None:
    """Initialises query, key and value, which lie in one matrix, each by itself."""
    for projection in weight.chunk(3):
        init.xavier_uniform_(projection, gain)


def _apply(
    model: torch.nn.Module, matrix: Callable[..., None], embedding: Callable[..., None] | None = None
) -> Initialisation:
    """Applies a preset: its functions for weights of linear maps and embeddings, and what all have in common.

    matrix: called as matrix(rules, path, module, name of the parameter).
    embedding: called as embedding(rules, path, module).
    """
    check_is_module(model)
    rules = _Rules()
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if torch.nn.utils.parametrize.is_parametrized(module):
            rules.skip(path, module, "it is parametrized: initialise its original tensors")
        elif any(torch.nn.parameter.is_lazy(parameter) for parameter in own.values()):
            rules.skip(path, module, "it is lazy: run the model once before")
        elif isinstance(module, torch.nn.utils.parametrize.ParametrizationList) or not own:
            continue
        elif kind_of(module).is_norm and own.keys() <= {"weight", "bias"}:
            rules.set(path, module, "weight", init.ones_)
            rules.set(path, module, "bias", init.zeros_)
        elif isinstance(module, (torch.nn.Linear, torch.nn.Bilinear, CONVOLUTIONS)):
            matrix(rules, path, module, "weight")
            rules.set(path, module, "bias", init.zeros_)
        elif isinstance(module, torch.nn.MultiheadAttention):
            for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                matrix(rules, path, module, name)
            rules.set(path, module, "in_proj_bias", init.zeros_)
            for name in ("bias_k", "bias_v"):
                rules.set(path, module, name, init.xavier_normal_)
        elif isinstance(module, EMBEDDINGS) and embedding is not None:
            embedding(rules, path, module)
        else:
            rules.skip(path, module, "this preset has no rule for it")
    return rules.report()


def kaiming_(
    model: torch.nn.Module, *, mode: str = "fan_in", nonlinearity: str = "relu", a: float = 0.0
) -> Initialisation:
    r"""He's initialisation of linear and convolutional weights, for networks of the ReLU family.

    w ~ N(0, gain^2 / fan), gain = sqrt(2) for ReLU, sqrt(2 / (1 + a^2)) for leaky ReLU of slope a.

    Args:
        model: a torch.nn.Module, initialised in place: Linear, Bilinear, convolutions and the projections of
            MultiheadAttention, to which no ReLU is applied, so that their gain is 1.
        mode: "fan_in" keeps the variance of activations, "fan_out", torchvision's choice, that of gradients.
            torch.nn.init takes a transposed convolution's fans for each other; here they are its own.
        nonlinearity, a: as of `torch.nn.init.kaiming_normal_`, such as "leaky_relu" and its slope.

    Returns an `Initialisation`. Raises TypeError where `model` is no module, and what torch.nn.init raises.

    Equivalent::

        torch.nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity=nonlinearity)
        torch.nn.init.zeros_(layer.bias)

    Source: He et al., "Delving Deep into Rectifiers" (2015), arXiv 1502.01852;
    https://docs.pytorch.org/docs/stable/nn.init.html#torch.nn.init.kaiming_normal_
    """
    other = {"fan_in": "fan_out", "fan_out": "fan_in"}

    def matrix(rules: _Rules, path: str, module: torch.nn.Module, name: str) -> None:
        options: dict[str, Any] = dict(mode=mode, nonlinearity=nonlinearity, a=a)
        if isinstance(module, (torch.nn.MultiheadAttention, OUTPUT_OF_ATTENTION)):
            options = dict(mode="fan_in", nonlinearity="linear")
        elif isinstance(module, TRANSPOSED):
            options["mode"] = other.get(mode, mode)
        rules.set(path, module, name, init.kaiming_normal_, **options)

    return _apply(model, matrix)


def xavier_(model: torch.nn.Module, *, gain: float = 1.0) -> Initialisation:
    r"""Glorot's initialisation of linear and convolutional weights, for tanh, sigmoid and attention.

    w ~ U(-b, b), b = gain sqrt(6 / (fan_in + fan_out)); of MultiheadAttention's packed projections each.

    Args:
        model: a torch.nn.Module, initialised in place: Linear, Bilinear, convolutions, MultiheadAttention.
        gain: such as `torch.nn.init.calculate_gain("tanh")`.

    Returns an `Initialisation`. Raises TypeError where `model` is not a module.

    Equivalent::

        torch.nn.init.xavier_uniform_(layer.weight, gain)
        torch.nn.init.zeros_(layer.bias)

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks"
    (2010); https://docs.pytorch.org/docs/stable/nn.init.html#torch.nn.init.xavier_uniform_
    """

    def matrix(rules: _Rules, path: str, module: torch.nn.Module, name: str) -> None:
        initialise = xavier_uniform_of_each if name == "in_proj_weight" else init.xavier_uniform_
        rules.set(path, module, name, initialise, gain=gain)

    return _apply(model, matrix)


def truncated_normal_(model: torch.nn.Module, *, std: float = 0.02) -> Initialisation:
    r"""Normal weights, truncated at two standard deviations, for transformers.

    w ~ N(0, std^2), cut at -2 std and 2 std.

    Args:
        model: a torch.nn.Module, initialised in place: Linear, Bilinear, convolutions, MultiheadAttention,
            Embedding and EmbeddingBag, of which the row of padding_idx is 0.
        std: 0.02 in BERT, GPT-2 and ViT.

    Returns an `Initialisation`. Raises TypeError where `model` is not a module.

    Equivalent::

        torch.nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        torch.nn.init.zeros_(layer.bias)

    Source: Devlin et al., "BERT" (2018), arXiv 1810.04805;
    https://docs.pytorch.org/docs/stable/nn.init.html#torch.nn.init.trunc_normal_
    """

    def matrix(rules: _Rules, path: str, module: torch.nn.Module, name: str) -> None:
        rules.set(path, module, name, init.trunc_normal_, std=std, a=-2 * std, b=2 * std)

    def embedding(rules: _Rules, path: str, module: Any) -> None:
        matrix(rules, path, module, "weight")
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()

    return _apply(model, matrix, embedding)


def zero_residual_(
    model: torch.nn.Module,
    blocks: type[torch.nn.Module] | Sequence[type[torch.nn.Module]],
    *,
    shortcuts: Collection[str] = SHORTCUTS,
) -> Initialisation:
    r"""Weight 0 in the last normalisation layer of every residual branch: each block begins as its shortcut.

    For blocks y = x + norm(f(x)), whose branch ends in a norm, as ResNet's do. Call it after a preset of
    weights. (A norm at the beginning of a branch, as in a pre-norm transformer, must keep its weight.)

    Args:
        model: a torch.nn.Module, initialised in place.
        blocks: the class of the residual blocks, or several, such as torchvision's BasicBlock and Bottleneck.
        shortcuts: names of children of a block that are not its branch; their norms are left as they are.

    Returns an `Initialisation`; blocks without such a norm are named in it. Raises TypeError where `model` is
    not a module or `blocks` no class of modules, ValueError where the model has no such block.

    Equivalent::

        torch.nn.init.zeros_(block.bn3.weight)              # in torchvision: zero_init_residual=True

    Source: Goyal et al., "Accurate, Large Minibatch SGD" (2017), arXiv 1706.02677;
    https://docs.pytorch.org/vision/stable/models/resnet.html
    """
    check_is_module(model)
    classes = tuple(blocks) if isinstance(blocks, (tuple, list)) else (blocks,)
    for cls in classes:
        if not is_module_class(cls):
            raise TypeError(
                f"expected blocks to be a class of residual blocks, or several, got {cls!r}: pass such as "
                f"torchvision.models.resnet.Bottleneck"
            )
    rules = _Rules()
    for path, block in model.named_modules():
        if not isinstance(block, classes):
            continue
        norms = [
            (name, module)
            for name, module in block.named_modules(prefix=path)
            if kind_of(module).is_norm
            and getattr(module, "weight", None) is not None
            and name[len(path) :].lstrip(".").split(".")[0] not in shortcuts
        ]
        if norms:
            rules.set(*norms[-1], "weight", init.zeros_)
        else:
            rules.skip(path, block, "its branch has no normalisation layer with a weight")
    if not (rules.changed or rules.skipped):
        raise ValueError(
            f"expected residual blocks of {', '.join(map(class_name, classes))}, and the model has none: "
            f"pass the class of its blocks, which print(model) shows"
        )
    return rules.report()

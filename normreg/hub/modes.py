"""`mapping`: which layers `kernels` finds under which names, on which devices, in which modes."""

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from normreg.hub import layers
from normreg.kernels import cpu

NAMES = "LayerNorm", "RMSNorm", "RMSNormGated", "RMSNormZeroCentered"


@dataclass(frozen=True)
class InstalledLayer:
    """A layer of this package, in the form of a repository of `kernels`."""

    layer_name: str

    def load(self) -> type[nn.Module]:
        found: type[nn.Module] = getattr(layers, self.layer_name)
        return found

    def __str__(self) -> str:
        return f"normreg (layer `{self.layer_name}`)"


def mapping(repository: str | os.PathLike[str] | None = None) -> dict[str, dict[str, dict[Any, Any]]]:
    """normreg's layers for `use_kernel_mapping` and `register_kernel_mapping` of Hugging Face's `kernels`.

    Args:
        repository: a folder that `normreg.hub.write` has written, whose layers are taken; None for the layers
            of this package.

    Returns {layer name: {device: {mode: repository}}} of the names `RMSNorm`, `RMSNormGated`,
    `RMSNormZeroCentered` and `LayerNorm`, of the devices that normreg has kernels for, and of inference and
    training, with torch.compile and without. Raises ImportError where `kernels` is not installed.

    `kernelize` gives the layers of classes that are decorated with these names another forward and leaves
    everything else of them. Layers of classes that normreg knows, as it knows those of transformers, are
    computed as after `normreg.replace`; others from `weight`, `variance_epsilon` or `eps`, and `activation`,
    or as before where one of these is absent or the dtypes of input and weight differ. A class that is
    derived from a decorated one and has a forward of its own keeps it.

    Equivalent::

        from kernels import Mode, kernelize, use_kernel_mapping
        with use_kernel_mapping(normreg.hub.mapping()):
            kernelize(model, mode=Mode.TRAINING | Mode.TORCH_COMPILE)

    Source: https://huggingface.co/docs/kernels/layers
    """
    try:
        kernels: Any = importlib.import_module("kernels")
    except ImportError as error:
        raise ImportError(
            f"expected Hugging Face's package kernels, got: {error}: pip install kernels, and import it from "
            f"outside a checkout of normreg, where a folder has the same name"
        ) from error

    def found(name: str) -> Any:
        if repository is None:
            return InstalledLayer(name)
        return kernels.LocalLayerRepository(Path(repository), layer_name=name)

    uses = kernels.Mode.INFERENCE, kernels.Mode.TRAINING
    modes = [*uses, *(use | kernels.Mode.TORCH_COMPILE for use in uses)]
    devices = ("cuda", "rocm", "cpu") if cpu.KERNELS else ("cuda", "rocm")
    return {name: {device: dict.fromkeys(modes, found(name)) for device in devices} for name in NAMES}

"""The peers that are measured beside normreg: torch eager, torch.compile, each library that is installed.

A peer's adapter takes the name of an operation and one of torch's layers, and returns a function of x that
computes with that layer's own parameters and buffers, or None where the library does not have the operation.
To add a library, write an adapter and a line of PEERS.
"""

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.operations import OPERATIONS, composed


def torch_eager(operation, layer):
    return layer


def torch_compile(operation, layer):
    torch._dynamo.reset()  # or the next cases would reach the limit of recompilations and run eagerly
    torch._functorch.config.donated_buffer = False  # or a backward could not be repeated
    # kernels are chosen anew, because `speed --quick` first chooses them on a busy GPU
    torch._inductor.config.autotune_local_cache = False
    return torch.compile(layer, dynamic=False)


def ours(operation, layer):
    return OPERATIONS[operation].fuse(layer)


def eps_of(layer):
    """The layer's eps, or that of float32 where RMSNorm's is None."""
    return torch.finfo(torch.float32).eps if layer.eps is None else layer.eps


def liger(operation, layer):
    if operation == "layer_norm":
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction

        return lambda x: LigerLayerNormFunction.apply(x, layer.weight, layer.bias, layer.eps)
    if operation == "rms_norm":
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        # without offset, and not in place, which would overwrite dy
        return lambda x: LigerRMSNormFunction.apply(x, layer.weight, eps_of(layer), 0.0, "llama", False)
    if operation == "group_norm":
        from liger_kernel.ops.group_norm import LigerGroupNormFunction

        sizes = layer.num_channels, layer.num_groups, layer.eps
        parameters = layer.weight, layer.bias
        # its backward takes three dimensions
        return lambda x: LigerGroupNormFunction.apply(x.flatten(2), *parameters, *sizes).view(x.shape)


def quack(operation, layer):
    if operation == "layer_norm":
        from quack.rmsnorm import layernorm_fwd

        weight, bias = layer.weight.detach().float(), layer.bias.detach().float()
        return lambda x: layernorm_fwd(x, weight, bias, layer.eps)
    if operation == "rms_norm":
        from quack.rmsnorm import rmsnorm

        return lambda x: rmsnorm(x, layer.weight, eps=eps_of(layer))


def flash_attention(operation, layer):
    if operation == "layer_norm":
        from flash_attn.ops.triton.layer_norm import layer_norm_fn

        return lambda x: layer_norm_fn(x, layer.weight, layer.bias, eps=layer.eps)
    if operation == "rms_norm":
        from flash_attn.ops.triton.layer_norm import rms_norm_fn

        return lambda x: rms_norm_fn(x, layer.weight, None, eps=eps_of(layer))
    if operation == "dropout_add_norm":
        from flash_attn.ops.triton import layer_norm

        norm, residual, prenorm = layer.norm, layer.residual, layer.prenorm
        centered = isinstance(norm, torch.nn.LayerNorm)
        fused = layer_norm.layer_norm_fn if centered else layer_norm.rms_norm_fn
        parameters = norm.weight, norm.bias if centered else None
        options = dict(eps=eps_of(norm), dropout_p=layer.p, prenorm=prenorm)

        def call(x):
            result = fused(x, *parameters, residual=residual, **options)
            return composed.Both.apply(*result) if prenorm else result

        return call


def flag_gems(operation, layer):
    operations = ("layer_norm", "rms_norm", "batch_norm", "group_norm", "dropout")
    return layer if operation in operations else None


@contextlib.contextmanager
def flag_gems_operators(operation):
    """Makes torch's operator FlagGems' own meanwhile."""
    import flag_gems

    with flag_gems.use_gems(include=[operation, f"{operation}_backward"]):
        yield


def apex(operation, layer):
    from apex.normalization import fused_layer_norm

    if operation == "layer_norm":
        parameters, fused = (layer.weight, layer.bias), fused_layer_norm.fused_layer_norm_affine
    elif operation == "rms_norm":
        parameters, fused = (layer.weight,), fused_layer_norm.fused_rms_norm_affine
    else:
        return None
    return lambda x: fused(x, *parameters, layer.normalized_shape, eps_of(layer))


def transformer_engine(operation, layer):
    import transformer_engine.pytorch as te

    if operation in ("layer_norm", "rms_norm"):
        cls = getattr(te, type(layer).__name__)
        theirs = cls(layer.normalized_shape, eps=eps_of(layer), dtype=layer.weight.dtype)
        for name, parameter in layer.named_parameters():
            setattr(theirs, name, parameter)
        return theirs


def attorch(operation, layer):
    import attorch

    cls = getattr(attorch, type(layer).__name__, None)
    if operation in ("layer_norm", "rms_norm"):
        theirs = cls(layer.normalized_shape[0], eps_of(layer))
    elif operation == "batch_norm" and layer.weight.dtype == torch.float32:
        theirs = cls(layer.num_features, layer.eps, layer.momentum)
    elif operation == "dropout":
        theirs = cls(layer.p)
    else:
        return None
    theirs._parameters, theirs._buffers = layer._parameters, layer._buffers
    return theirs.train(layer.training)


def cudnn_frontend(operation, layer):
    """cuDNN's operators, which build a graph at the first call of a shape and keep it."""
    if operation == "layer_norm":
        from cudnn.experimental.ops import layer_norm

        parameters = layer.weight, layer.bias
        return lambda x: layer_norm(x, layer.normalized_shape, *parameters, layer.eps)
    if operation == "rms_norm":
        from cudnn.experimental.ops import rms_norm

        return lambda x: rms_norm(x, layer.weight, eps=eps_of(layer))


@dataclass(frozen=True)
class Peer:
    name: str
    adapt: Callable  # (operation, torch's layer) -> function of x, or None
    package: str = "torch"  # name to import
    distribution: str = "torch"  # name to install
    around: Callable = contextlib.nullcontext  # (operation) -> the context to measure in
    forward_only: tuple = ()  # operations for which it has no backward
    triton: bool = False  # whether its kernels are Triton's

    def installed(self):
        return importlib.util.find_spec(self.package) is not None

    def version(self):
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None


OURS = "normreg"
PEERS = (
    Peer(OURS, ours, "normreg", "normreg"),
    Peer("torch eager", torch_eager),
    Peer("torch.compile", torch_compile),
    Peer("liger-kernel", liger, "liger_kernel", "liger-kernel", triton=True),
    Peer("cuDNN frontend", cudnn_frontend, "cudnn", "nvidia-cudnn-frontend"),
    Peer("quack", quack, "quack", "quack-kernels", forward_only=("layer_norm",)),
    Peer("flash-attn", flash_attention, "flash_attn", "flash-attn", triton=True),
    Peer("FlagGems", flag_gems, "flag_gems", "flag-gems", flag_gems_operators, triton=True),
    Peer("apex", apex, "apex", "apex"),
    Peer("TransformerEngine", transformer_engine, "transformer_engine", "transformer-engine"),
    Peer("attorch", attorch, "attorch", "attorch", triton=True),
)

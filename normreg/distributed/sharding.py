"""DTensors: which placements an operation keeps, computed on each rank's own part without communication.

An operation over rows needs whole rows and whole parameters. Where a mesh dimension shards other dimensions
of the input, or none, its result lies like the input, and the gradients of its parameters are partial sums
over that mesh dimension. Any other placement is torch's operator to redistribute.

torch's registration of sharding rules for operators is not used: an operator's flat statistics, of a sequence
that is sharded, are no placement that DTensor has, and it might choose to move x without them.
"""

import sys
from typing import NamedTuple

import torch

from normreg.ops import seed


def _dtensor():
    """torch's class, or None where nobody has imported it, so that no tensor is one."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


class PartFunction(torch.autograd.Function):
    """A DTensor's part of this rank, whose gradient is a part of a DTensor with the given placements.

    As `to_local`, but that of torch 2.11 loses second derivatives and gathers a leaf's gradient.
    """

    @staticmethod
    def forward(ctx, tensor, grad_placements):
        ctx.of = tensor.device_mesh, grad_placements
        ctx.sizes = dict(shape=tensor.shape, stride=tensor.stride())
        local = tensor.to_local()
        return local.view_as(local)

    @staticmethod
    def backward(ctx, dy):
        return _dtensor().from_local(dy, *ctx.of, run_check=False, **ctx.sizes), None


def _part(tensor, grad_placements):
    if torch.compiler.is_compiling():
        return tensor.to_local(grad_placements=grad_placements)
    return PartFunction.apply(tensor, grad_placements)


class Kept(NamedTuple):
    """The mesh of an input whose placements are kept, and these."""

    mesh: object
    placements: tuple

    def local(self, tensor):
        """This rank's part."""
        return _part(tensor, self.placements)

    def parameter(self, tensor):
        """A replicated tensor, whose gradients of each rank are terms of a sum where the input is sharded."""
        if tensor is None:
            return None
        from torch.distributed.tensor import Partial, Shard

        summed = [Partial() if isinstance(p, Shard) else p for p in self.placements]
        return _part(tensor, summed)

    def result(self, local, like):
        """The DTensor, contiguous and of the shape of `like`, of which this rank has the part `local`."""
        stride = torch.empty(like.shape, device="meta").stride()
        return _dtensor().from_local(
            local, self.mesh, self.placements, run_check=False, shape=like.shape, stride=stride
        )

    def generator(self, given):
        """A generator for this rank's part, in another state than those of other parts.

        It follows from the state of the given or default one, which ranks may or may not share, and moves it.
        """
        device = torch.device(self.mesh.device_type)
        if device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        part = 0
        for index, size in zip(self.mesh.get_coordinate(), self.mesh.shape):
            part = part * size + index
        return torch.Generator(device).manual_seed(seed.of_part(seed.draw(device, given), part))


def over_rows(ours, torchs, input):
    """`torchs`, or for a DTensor of whole rows `ours` of each rank's part.

    All are functions (input, normalized_shape, *parameters, eps).
    """
    dtensor = _dtensor()
    if dtensor is None or type(input) is not dtensor:
        return torchs

    def of_parts(input, normalized_shape, *parameters_and_eps):
        *parameters, eps = parameters_and_eps
        if not _has_whole_rows(input, normalized_shape, parameters):
            return torchs(input, normalized_shape, *parameters, eps)
        kept = Kept(input.device_mesh, input.placements)
        y = ours(kept.local(input), normalized_shape, *map(kept.parameter, parameters), eps)
        return kept.result(y, input)

    return of_parts


def _has_whole_rows(x, normalized_shape, parameters):
    from torch.distributed.tensor import Shard

    leading = x.dim() - len(normalized_shape)
    return all(p.is_replicate() or (type(p) is Shard and p.dim < leading) for p in x.placements) and all(
        parameter is None
        or (
            isinstance(parameter, _dtensor())
            and parameter.device_mesh == x.device_mesh
            and all(p.is_replicate() for p in parameter.placements)
        )
        for parameter in parameters
    )


def elements_kept(x, p, inplace, leading):
    """`Kept` where x is a DTensor that every mesh dimension shards: no rank has another one's elements.

    leading: None where every element is decided by itself.
    """
    dtensor = _dtensor()
    if dtensor is None or type(x) is not dtensor or leading is not None or inplace:
        return None
    if torch.compiler.is_compiling() or not (isinstance(p, float) and 0 < p < 1):
        return None
    from torch.distributed.tensor import Shard

    return Kept(x.device_mesh, x.placements) if all(type(p) is Shard for p in x.placements) else None

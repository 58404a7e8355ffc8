"""DTensors: the placements that an operation keeps, computed on each rank's own part without communication.

An operation over rows needs whole rows and whole parameters. Where a mesh dimension shards other dimensions
of the input, or none, the result is placed like the input, and the gradients of the parameters are partial
sums over that mesh dimension. torch's operator redistributes any other placement.

torch's registration of sharding rules for operators is not used: DTensor has no placement for the flat
statistics of a sharded sequence, and torch might choose to move x without them.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normreg.ops import seed


def _dtensor() -> Any:
    """torch's class, or None where nobody has imported it: then no tensor is one."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


class PartFunction(torch.autograd.Function):
    """This rank's part of a DTensor. Its gradient is a part of a DTensor with the given placements.

    Like `to_local`, but that of torch 2.11 loses second derivatives and gathers a leaf's gradient.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Any, grad_placements: Any) -> Tensor:
        ctx.of = tensor.device_mesh, grad_placements
        ctx.sizes = dict(shape=tensor.shape, stride=tensor.stride())
        local = tensor.to_local()
        return local.view_as(local)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return _dtensor().from_local(dy, *ctx.of, run_check=False, **ctx.sizes), None


def _part(tensor: Any, grad_placements: Any) -> Tensor:
    if torch.compiler.is_compiling():
        return tensor.to_local(grad_placements=grad_placements)
    return PartFunction.apply(tensor, grad_placements)


class Kept(NamedTuple):
    """The mesh and the placements of an input whose result is placed in the same way."""

    mesh: Any
    placements: tuple

    def local(self, tensor: Tensor) -> Tensor:
        """This rank's part."""
        return _part(tensor, self.placements)

    def parameter(self, tensor: Tensor | None) -> Tensor | None:
        """A replicated tensor. Where the input is sharded, each rank's gradient is one term of a sum."""
        if tensor is None:
            return None
        from torch.distributed.tensor import Partial, Shard

        summed = [Partial() if isinstance(p, Shard) else p for p in self.placements]
        return _part(tensor, summed)

    def result(self, local: Tensor, like: Tensor) -> Tensor:
        """The contiguous DTensor of the shape of `like` whose part on this rank is `local`."""
        stride = torch.empty(like.shape, device="meta").stride()
        return _dtensor().from_local(
            local, self.mesh, self.placements, run_check=False, shape=like.shape, stride=stride
        )

    def generator(self, given: torch.Generator | None) -> torch.Generator:
        """A generator for this rank's part, in a state of its own.

        The state follows from that of the given or default generator, which ranks may or may not share, and
        which this call advances.
        """
        device = torch.device(self.mesh.device_type)
        if device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        part = 0
        for index, size in zip(self.mesh.get_coordinate(), self.mesh.shape):
            part = part * size + index
        return torch.Generator(device).manual_seed(seed.of_part(seed.draw(device, given), part))


def over_rows(
    ours: Callable[..., Tensor], in_torch: Callable[..., Tensor], input: Any
) -> Callable[..., Tensor]:
    """Returns `in_torch`, or for a DTensor of whole rows a function that applies `ours` to each rank's part.

    All are functions (input, normalized_shape, *parameters, eps).
    """
    dtensor = _dtensor()
    if dtensor is None or type(input) is not dtensor:
        return in_torch

    def of_parts(input: Any, normalized_shape: Sequence[int], *parameters_and_eps: Any) -> Tensor:
        *parameters, eps = parameters_and_eps
        if not _has_whole_rows(input, normalized_shape, parameters):
            return in_torch(input, normalized_shape, *parameters, eps)
        kept = Kept(input.device_mesh, input.placements)
        y = ours(kept.local(input), normalized_shape, *map(kept.parameter, parameters), eps)
        return kept.result(y, input)

    return of_parts


def _has_whole_rows(x: Any, normalized_shape: Sequence[int], parameters: Sequence[Any]) -> bool:
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


def elements_kept(x: Any, p: float, inplace: bool, leading: int | None) -> Kept | None:
    """Returns `Kept` for a DTensor that every mesh dimension shards: each element is on one rank only.

    leading: None where each element has an outcome of its own; there is no `Kept` otherwise.
    """
    dtensor = _dtensor()
    if dtensor is None or type(x) is not dtensor or leading is not None or inplace:
        return None
    if torch.compiler.is_compiling() or not (isinstance(p, float) and 0 < p < 1):
        return None
    from torch.distributed.tensor import Shard

    return Kept(x.device_mesh, x.placements) if all(type(p) is Shard for p in x.placements) else None

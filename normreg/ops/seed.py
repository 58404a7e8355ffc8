"""Where a dropout call's seed comes from: torch's generator of the tensor's device.

So `torch.manual_seed`, `fork_rng`, `generator=` and the recomputation of activation checkpointing
decide the mask, and two calls have two masks. A compiled graph draws by an operator, whose results its
backward is given: were they drawn again there, the gradient would have another mask.
"""

import weakref
from typing import Any

import torch
from torch._functorch import config
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, get_proxy_mode
from torch.utils.checkpoint import CheckpointPolicy, _CachingTorchDispatchMode

from normreg.ops.decomposition import DECOMPOSITIONS
from normreg.ops.operation import LIBRARY

MASK_64 = 2**64 - 1
ONE = (1,)  # Inductor would hand a scalar of the CPU over by value


def _mix(z):
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): a bijection that spreads every bit of z."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK_64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK_64
    return z ^ (z >> 31)


def draw(device, generator=None):
    """A fresh 63-bit seed: an int, or where calls are recorded an int64 tensor, drawn anew each replay.

    In eager mode a GPU's seed is computed here, from the generator's seed and offset, without a launch.
    The two are mixed, because Philox keyed with the generator's own seed would repeat torch's numbers.
    """
    on_cuda = device.type == "cuda"
    compiled = torch.compiler.is_compiling()
    if compiled and generator is None:
        return draw_seed(device=device)
    recorded = compiled or (on_cuda and torch.cuda.is_current_stream_capturing())
    if recorded or not on_cuda:
        drawn = torch.randint(2**63 - 1, (), device=device, generator=generator)
        return drawn if recorded else drawn.item()
    if generator is None:
        generator = torch.cuda.default_generators[device.index]
    offset = generator.get_offset()
    handle(generator).set_offset(offset + 4)  # torch asks for multiples of 4
    return _mix(_mix(generator.initial_seed() & MASK_64) ^ offset) >> 1


def run(after=None, *, device):
    """Draws by torch's kernel, captured or not: what one of them ran may be computed again by the other."""
    return torch.randint(2**63 - 1, ONE, device=device)


def fake(after=None, *, device):
    return torch.empty(ONE, dtype=torch.int64, device=device)


def record(mode, operator, types, args, kwargs):
    """Records a call in a graph, after the one before, whose seed it takes.

    So no two calls are equal, of which a pass would leave one, and none changes their order.
    """
    (after,) = args or (None,)
    given = LAST.get(mode.tracer) if after is None else after
    LAST[mode.tracer] = seed = mode.__torch_dispatch__(operator, types, (given,), kwargs)
    keep(mode)
    return seed


def record_in_checkpoint(mode, operator, types, args, kwargs):
    """Records a call in a compiled checkpoint, whose policy would compute it again."""
    seed = mode.__torch_dispatch__(operator, types, args, kwargs)
    if (recording := get_proxy_mode()) is not None:
        keep(recording)
    return seed


def keep(mode):
    """Has the partitioner save the seed recorded last, whatever else the backward computes again.

    With a budget of 0 it saves nothing but inputs, so the graph's is raised to the least other one. That of a
    region cannot be: there the seed is drawn again, with the generator's state of the forward.
    """
    nodes = mode.tracer.graph.find_nodes(op="call_function", target=draw_seed)
    for node in nodes[-1:]:  # none where it is decomposed
        region = node.meta.get("custom", {}).get("_region_activation_memory_budget")
        policy = CheckpointPolicy.MUST_RECOMPUTE if region == 0 else CheckpointPolicy.MUST_SAVE
        node.meta["recompute"] = policy
        if config.activation_memory_budget == 0:
            node.meta["memory_budget"] = 1e-9


NAME = f"{LIBRARY.ns}::draw_seed"
# {what records a graph: the seed that it recorded last}
LAST: weakref.WeakKeyDictionary[Any, torch.Tensor] = weakref.WeakKeyDictionary()

TAGS = torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded
LIBRARY.define("draw_seed(Tensor? after=None, *, Device device) -> Tensor", tags=TAGS)
LIBRARY.impl("draw_seed", run, "CompositeExplicitAutograd")
torch.library.register_fake(NAME, fake, lib=LIBRARY)
torch.library.register_torch_dispatch(NAME, ProxyTorchDispatchMode, record, lib=LIBRARY)
torch.library.register_torch_dispatch(NAME, _CachingTorchDispatchMode, record_in_checkpoint, lib=LIBRARY)
draw_seed = getattr(torch.ops, LIBRARY.ns).draw_seed.default
DECOMPOSITIONS[draw_seed] = run


def handle(generator):
    """Another handle of a generator's state, to change the state through.

    What is set through the generator of a GPU itself would also make it forget that cuDNN's RNNs hold a state
    of their dropout: they would make it anew at their next forward, from a number that the host waits for.
    """
    return generator.graphsafe_get_state() if generator.device.type == "cuda" else generator


def of_part(seed, part):
    """A 63-bit seed for each part of a tensor, from one for the whole."""
    return _mix(_mix(seed) ^ part) >> 1

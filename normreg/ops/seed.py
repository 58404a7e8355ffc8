"""Where a dropout call's seed comes from: torch's generator of the tensor's device.

So `torch.manual_seed`, `fork_rng`, `generator=` and the recomputation of activation checkpointing
decide the mask, and two calls have two masks.
"""

import torch

MASK_64 = 2**64 - 1


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
    recorded = torch.compiler.is_compiling() or (on_cuda and torch.cuda.is_current_stream_capturing())
    if recorded or not on_cuda:
        # inductor has a kernel of its own for randint without a generator
        given = {} if generator is None else {"generator": generator}
        drawn = torch.randint(2**63 - 1, (), device=device, **given)
        return drawn if recorded else drawn.item()
    if generator is None:
        generator = torch.cuda.default_generators[device.index]
    offset = generator.get_offset()
    handle(generator).set_offset(offset + 4)  # torch asks for multiples of 4
    return _mix(_mix(generator.initial_seed() & MASK_64) ^ offset) >> 1


def handle(generator):
    """Another handle of a generator's state, to change the state through.

    What is set through the generator of a GPU itself would also make it forget that cuDNN's RNNs hold a state
    of their dropout: they would make it anew at their next forward, from a number that the host waits for.
    """
    return generator.graphsafe_get_state() if generator.device.type == "cuda" else generator


def of_part(seed, part):
    """A 63-bit seed for each part of a tensor, from one for the whole."""
    return _mix(_mix(seed) ^ part) >> 1

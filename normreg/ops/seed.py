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
    """A fresh 63-bit seed: an int, or under CUDA-graph capture an int64 tensor, drawn anew each replay.

    In eager mode a GPU's seed is computed here, from the generator's seed and offset, without a launch.
    The two are mixed, because Philox keyed with the generator's own seed would repeat torch's numbers.
    """
    if device.type != "cuda":
        return torch.randint(2**63 - 1, (), generator=generator, device=device).item()
    if torch.cuda.is_current_stream_capturing():
        return torch.randint(2**63 - 1, (), generator=generator, device=device)
    if generator is None:
        generator = torch.cuda.default_generators[device.index]
    offset = generator.get_offset()
    generator.set_offset(offset + 4)  # torch asks for multiples of 4
    return _mix(_mix(generator.initial_seed() & MASK_64) ^ offset) >> 1

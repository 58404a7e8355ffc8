"""The training of a variant of a network: first losses, bytes kept for the backward, time and memory.

Without a GPU a tiny network trains in float32 in Triton's interpreter; with one, under bfloat16 autocast.
"""

import contextlib
import itertools
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
from torch import nn

import normreg
from bench.perf.models import fused_block, networks

TINY = triton.knobs.runtime.interpret  # because the interpreter takes milliseconds a program
ON_GPU = not TINY
DEVICE = "cuda" if ON_GPU else "cpu"
AUTOCAST = torch.bfloat16 if ON_GPU else None
HIGHER_PRECISION = torch.float32 if ON_GPU else torch.float64
FUSED = "normreg, fused blocks"

SEED = 0
LEARNING_RATE = 1e-4
COMPARED_STEPS = 5 if ON_GPU else 2
WARM_UP_STEPS, TIMED_STEPS = 10, 30


@dataclass(frozen=True)
class Model:
    name: str
    title: str
    network: type[nn.Module]
    samples: int  # in a batch
    tiny: dict  # options of the network without a GPU, and samples in a batch there
    tiny_samples: int = 2
    channels_last: bool = False
    has_blocks: bool = False  # those of a transformer

    def __str__(self):
        return f"{self.title} (tiny)" if TINY else self.title

    def build(self, device):
        """Makes the network and its batch, the same at every call on the same device."""
        torch.manual_seed(SEED)
        with torch.device(device):
            network = self.network(**(self.tiny if TINY else {}))
            inputs, labels = network.random_batch(self.tiny_samples if TINY else self.samples)
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
            inputs = inputs.to(memory_format=torch.channels_last)
        return network, inputs, labels


def loss_of(network, inputs, labels):
    """Cross-entropy of predictions (samples, classes) or (samples, tokens, vocabulary)."""
    return F.cross_entropy(network(inputs).flatten(0, -2), labels.flatten(), ignore_index=networks.IGNORED)


def without_dropout(network):
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, networks.Attention):
            module.dropout = 0.0


class Training:
    """A variant of a network, its optimizer and the one batch it trains on."""

    def __init__(self, model, variant):
        self.network, self.inputs, self.labels = model.build(DEVICE)
        if variant == "normreg":
            normreg.replace(self.network)
        elif variant == FUSED:
            fused_block.fuse(self.network)
        self.loss_of = torch.compile(loss_of) if variant == "torch.compile" else loss_of
        self.optimizer = torch.optim.AdamW(self.network.parameters(), LEARNING_RATE, fused=True)
        self.autocast = AUTOCAST

    def in_higher_precision(self):
        self.network.to(HIGHER_PRECISION)
        if self.inputs.is_floating_point():
            self.inputs = self.inputs.to(HIGHER_PRECISION)
        self.autocast = None

    def kept_bytes(self):
        """Bytes kept for the backward in storages that are neither the parameters' nor the batch's."""
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self.loss()
        given = {
            t.untyped_storage().data_ptr() for t in (*self.network.parameters(), self.inputs, self.labels)
        }
        total = sum(size for pointer, size in kept.items() if pointer not in given)
        loss.backward()
        self.optimizer.zero_grad()
        return total

    def loss(self):
        precision = torch.autocast(DEVICE, self.autocast) if self.autocast else contextlib.nullcontext()
        with precision:
            return self.loss_of(self.network, self.inputs, self.labels)

    def step(self):
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def first_losses(model, variant, higher_precision=False):
    training = Training(model, variant)
    without_dropout(training.network)
    if higher_precision:
        training.in_higher_precision()
    losses = torch.stack([training.step() for _ in range(COMPARED_STEPS)])
    if not losses.isfinite().all():
        raise FloatingPointError(f"losses that are not finite: {losses.tolist()}")
    return losses.tolist()


def kept(model, variant):
    return Training(model, variant).kept_bytes()


def cost(model, variant):
    """Time of each step and peak memory, on a GPU."""
    before = torch.cuda.memory_allocated()
    begin = time.perf_counter()
    training = Training(model, variant)
    for _ in range(WARM_UP_STEPS):
        training.step()
    torch.cuda.synchronize()
    warm_up = time.perf_counter() - begin
    torch.cuda.reset_peak_memory_stats()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(TIMED_STEPS + 1)]
    events[0].record()
    for event in events[1:]:
        training.step()
        event.record()
    torch.cuda.synchronize()
    return dict(
        step_ms=[start.elapsed_time(end) for start, end in itertools.pairwise(events)],
        peak_bytes=torch.cuda.max_memory_allocated() - before,
        warm_up_s=warm_up,
    )

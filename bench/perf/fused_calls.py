"""Python's time for the call of a fused model beside the same one unfused. Needs no GPU.

A model of alike blocks in torch.nn's pre-norm form, with a driver that launches nothing: with normreg's
layers, with its calls fused as a whole, and with each block fused by itself. A fused call runs a graph,
without the calls of modules, behind the guards by which torch.compile knows that it holds.
"""

import copy
from functools import partial

import torch
from torch import nn

import normreg
from bench.harness import tables, turns
from bench.lab import stub_driver
from bench.lab.without_gpu import as_on_a_gpu

OPERATION, BLOCKS, TURNS, CALLS = "fused_calls", 12, 20, 5


WORDS = (
    "A model of alike blocks: unfused on normreg's layers, with its calls fused as a whole, and with each "
    "block fused by itself; the last two columns are what these add to the unfused one, over the blocks."
)


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.linear1, self.linear2, self.act = nn.Linear(width, width), nn.Linear(width, width), nn.GELU()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.linear1(self.norm1(x))
        return x + self.linear2(self.act(self.norm2(x)))


def models():
    """{name: model}, all with normreg's layers."""
    unfused = nn.Sequential(*(Block() for _ in range(BLOCKS)))
    normreg.replace(unfused)
    whole, each = copy.deepcopy(unfused), copy.deepcopy(unfused)
    normreg.replace(whole, fuse=True)
    for block in each:
        normreg.replace(block, fuse=True)
    return {"unfused": unfused, "fused whole": whole, "each block fused": each}


def measure():
    """A record for training and one for evaluation without gradients."""
    stub_driver.install()
    with as_on_a_gpu():
        contestants, x = models(), torch.randn(2, 8)
        for direction in ("training", "evaluation"):
            training = direction == "training"
            with torch.set_grad_enabled(training):
                calls = {name: partial(model.train(training), x) for name, model in contestants.items()}
                samples = turns.samples(calls, TURNS, CALLS)
            yield dict(operation=OPERATION, case=f"{BLOCKS} blocks", direction=direction, samples_us=samples)


def table(records):
    """A row for each record: times of the model, and the difference to the unfused one a block."""
    rows = []
    for record in records:
        times = turns.times(record["samples_us"])
        differences = [
            (times[name] - times["unfused"]) / BLOCKS for name in ("fused whole", "each block fused")
        ]
        numbers = [f"{value:.0f}" for value in times.values()] + [f"{value:+.1f}" for value in differences]
        rows.append((record["case"], record["direction"], *numbers))
    headers = (
        "model | call | unfused us | fused whole us | each fused us | whole, a block us | each, a block us"
    )
    return tables.text(headers, rows, grouped=1)

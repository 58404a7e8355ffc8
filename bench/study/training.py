"""Fully connected networks of normreg's layers, and the loop that trains them."""

import itertools
import math
import statistics

import torch
import torch.nn.functional as F

import normreg
from bench.study.data import DEVICE
from bench.study.experiment import LARGEST_LOSS

NORMS = {"none": None, "BatchNorm": normreg.BatchNorm1d, "LayerNorm": normreg.LayerNorm}
AVERAGED = 20  # steps at the end, about one pass over the data


def network(widths, norm="none", dropout=0.0):
    """A network of linear layers with norm, ReLU and dropout after all but the last, by `kaiming_`."""
    layers = []
    for inputs, outputs in itertools.pairwise(widths[:-1]):
        layers.append(torch.nn.Linear(inputs, outputs))
        if NORMS[norm]:
            layers.append(NORMS[norm](outputs))
        layers.append(torch.nn.ReLU())
        if dropout:
            layers.append(normreg.Dropout(dropout))
    model = torch.nn.Sequential(*layers, torch.nn.Linear(*widths[-2:])).to(DEVICE)
    normreg.init.kaiming_(model)
    return model


def batches(data, size, number, seed):
    """Yields batches of passes over the data in random order, without what is left over at a pass's end."""
    x, labels = data
    generator = torch.Generator().manual_seed(seed)
    given = 0
    while given < number:
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for chosen in order.split(size)[: max(1, len(x) // size)]:
            if given < number:
                given += 1
                yield x[chosen], labels[chosen]


def train(model, optimizer, data, number, seed, *, batch=64, weight_decay=0.0):
    """Trains a model; returns the mean of its last losses without the penalty, or LARGEST_LOSS."""
    losses = []
    model.train()
    for x, labels in batches(data, batch, number, seed):
        loss = F.cross_entropy(model(x), labels)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            return LARGEST_LOSS
        if weight_decay:
            loss = loss + normreg.l2_penalty(model.parameters(), weight_decay)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return min(LARGEST_LOSS, statistics.mean(losses[-AVERAGED:]))


@torch.no_grad()
def evaluate(model, data):
    """Loss and accuracy in evaluation mode, with LARGEST_LOSS for a loss that is not finite."""
    model.eval()
    x, labels = data
    outputs = model(x)
    loss = F.cross_entropy(outputs, labels).item()
    accuracy = (outputs.argmax(1) == labels).double().mean().item()
    return min(LARGEST_LOSS, loss) if math.isfinite(loss) else LARGEST_LOSS, accuracy


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9)

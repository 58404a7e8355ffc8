"""Training runs of several models over the same batches, and what is compared between them."""

import copy
import itertools

import torch
import torch.nn.functional as F

import normreg
from bench.demo import DEVICE
from bench.demo.networks import NETWORKS
from bench.harness.progress import progress

COMPARED = ("torch.nn", "normreg")
DROPOUT = 0.1
BATCH = 128


def batch_of(size, data):
    """The first images and labels, from the start again where there are too few."""
    return tuple(tensor[torch.arange(size, device=DEVICE) % len(tensor)] for tensor in data)


def flat(tensors):
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


class Run:
    """A model in training: its losses so far, and the outputs and gradients of its first step."""

    def __init__(self, model, learning_rate=0.0):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
        self.dtype = next(model.parameters()).dtype
        self.losses = []
        self.first = {}

    def step(self, images, labels):
        self.model.train()
        outputs = self.model(images.to(self.dtype))
        loss = F.cross_entropy(outputs, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.detach())
        return outputs.detach()

    @torch.no_grad()
    def test(self, images):
        self.model.eval()
        return self.model(images.to(self.dtype))

    def observations(self, images):
        """What is compared between runs: flat float64 tensors by name."""
        observed = self.first | {
            "losses of all steps": flat(self.losses),
            "test outputs at the end": flat([self.test(images)]),
        }
        if buffers := list(self.model.buffers()):
            observed["running statistics at the end"] = flat(buffers)
        return observed


def train(models, data, size, seed, title, advance):
    """Trains all models on the same batches; returns their runs by name."""
    runs = {name: Run(model, size.learning_rate) for name, model in models.items()}
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    for step in range(size.steps):
        losses = (f"{name} {runs[name].losses[-1]:.3f}" for name in COMPARED if step)
        advance(f"{title} {', '.join(losses)}")
        chosen = torch.randperm(len(images), generator=generator)[:BATCH].to(DEVICE)
        for run in runs.values():
            outputs = run.step(images[chosen], labels[chosen])
            if step == 0:
                gradients = [parameter.grad for parameter in run.model.parameters()]
                run.first = {"outputs, first step": flat([outputs]), "gradients, first step": flat(gradients)}
    return runs


def train_all(data, size, seed):
    """Trains both networks with dropout off and on.

    Returns {network: {dropout probability: runs}} and {network: report of what was replaced}.
    """
    runs, reports = {network: {} for network in NETWORKS}, {}
    with progress(2 * len(NETWORKS) * size.steps) as advance:
        for network, dropout in itertools.product(NETWORKS, (0.0, DROPOUT)):
            torch.manual_seed(seed)
            original = NETWORKS[network](size, dropout).to(DEVICE)
            models = {"torch.nn": original, "normreg": copy.deepcopy(original)}
            reports[network] = normreg.replace(models["normreg"])
            if not dropout:
                models["float64"] = copy.deepcopy(original).double()
            title = f"{network}, dropout {dropout or 'off'}"
            runs[network][dropout] = train(models, data, size, seed, title, advance)
    return runs, reports

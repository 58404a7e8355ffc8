"""Whole training steps of five networks before and after `normreg.replace`, and with fused blocks.

Every variant of a network starts from the same seed, so from the same weights and the same random batch, and
trains on it with AdamW. On a GPU the networks have their published sizes and train under bfloat16 autocast
with float32 weights, the convolutional ones in channels_last. torch.compile, of a network and its loss
together, is a further baseline. Timed is a step from end to end: forward, backward and optimizer. Peak memory
is that of such steps, weights and optimizer included.

Kept bytes are those that autograd keeps for the backward of a step, beside parameters and batch, dropout on:
counted, with or without a GPU.

Losses are compared with dropout off, over the first steps. What rounding is worth is measured, too: the
yardstick is torch.nn's own distance from the same training in float32 throughout.

Without a GPU a tiny version of each network runs through Triton's interpreter in float32, for the losses
and the kept bytes, and the yardstick's training is in float64. Time and peak memory are not measured then.
"""

import contextlib
import gc
import itertools
import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

import normreg
from bench.lab import interpreter
from bench.perf import fused_block, networks, tables, worker
from normreg.kernels import launch

TINY = launch.INTERPRET
ON_GPU = not TINY
DEVICE = "cuda" if ON_GPU else "cpu"
AUTOCAST = torch.bfloat16 if ON_GPU else None
HIGHER_PRECISION = torch.float32 if ON_GPU else torch.float64
FUSED = "normreg, fused blocks"
VARIANTS = ("torch.nn", "normreg", FUSED, "torch.compile") if ON_GPU else ("torch.nn", "normreg", FUSED)

SEED = 0
LEARNING_RATE = 1e-4
COMPARED_STEPS = 5 if ON_GPU else 2
WARM_UP_STEPS, TIMED_STEPS = 10, 30
SILENCE_S = 600  # of an attempt; then it hangs


@dataclass(frozen=True)
class Model:
    name: str
    title: str
    network: type[nn.Module]
    samples: int  # in a batch on a GPU
    tiny: dict  # the network's options without one, and the samples
    tiny_samples: int = 2
    channels_last: bool = False
    has_blocks: bool = False  # of a transformer

    def __str__(self):
        return f"{self.title} (tiny)" if TINY else self.title

    def build(self, device):
        """The network and its batch, the same for every call on the same device."""
        torch.manual_seed(SEED)
        with torch.device(device):
            network = self.network(**(self.tiny if TINY else {}))
            inputs, labels = network.random_batch(self.tiny_samples if TINY else self.samples)
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
            inputs = inputs.to(memory_format=torch.channels_last)
        return network, inputs, labels


TINY_TRANSFORMER = dict(layers=2, width=64, heads=4)
TINY_TEXT = TINY_TRANSFORMER | dict(vocabulary=128, context=16)
TINY_IMAGES = dict(image=64, classes=10)
OPERATIONS = {
    model.name: model
    for model in (
        Model("gpt2", "GPT-2", networks.GPT2, 8, TINY_TEXT, has_blocks=True),
        Model("bert", "BERT-base", networks.BERT, 32, TINY_TEXT, has_blocks=True),
        Model("vit", "ViT-B/16", networks.ViT, 64, TINY_TRANSFORMER | TINY_IMAGES, has_blocks=True),
        Model(
            "resnet50",
            "ResNet-50",
            networks.ResNet50,
            128,
            dict(depths=(1, 1, 1, 1), width=4) | TINY_IMAGES,
            tiny_samples=8,
            channels_last=True,
        ),
        Model(
            "convnext",
            "ConvNeXt-T",
            networks.ConvNeXt,
            64,
            # with the published layer scale of 1e-6 the blocks hardly reach the first losses
            dict(depths=(1, 1, 1, 1), widths=(16, 24, 32, 40), layer_scale=1.0) | TINY_IMAGES,
            channels_last=True,
        ),
    )
}


def loss_of(network, inputs, labels):
    """Cross-entropy over all that is predicted: (samples, classes) or (samples, tokens, vocabulary)."""
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
        """Of the storages kept for the backward that are not the parameters' or the batch's."""
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
    """Time of each step and memory at the peak; only where there is a GPU."""
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


class Attempts:
    """What a worker serves, one after the other: a failed one is ended with its process."""

    def make(self, function, *arguments):
        """The function's result, with a GPU's memory of the attempt before given back."""
        if ON_GPU:
            gc.collect()
            torch.compiler.reset()
            torch.cuda.empty_cache()
        yield function(*arguments)


def attempts_on_a_gpu():
    torch.backends.cudnn.allow_tf32 = False  # the yardstick is float32
    torch.backends.cudnn.benchmark = True
    return Attempts()


def attempt(attempts, function, *arguments):
    """(result, None), or (None, what went wrong)."""
    try:
        (result,) = attempts.call("make", function, *arguments, limit=SILENCE_S)
        return result, None
    except worker.Failed as failure:
        return None, str(failure)


def largest_difference(losses, others):
    if losses is None or others is None:
        return None
    return max(abs(loss - other) for loss, other in zip(losses, others, strict=True))


def measure(model, attempts):
    """The records of one network, a variant each."""
    network, inputs, _ = model.build("meta")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    layers_replaced = len(normreg.replace(network).changed)
    case = f"{model}, {parameters:,} parameters, input {'x'.join(map(str, inputs.shape))}"

    # losses first: what libraries keep allocated is there before memory is measured
    original, original_error = attempt(attempts, first_losses, model, "torch.nn")
    ours = {
        v: attempt(attempts, first_losses, model, v)
        for v in ("normreg", FUSED)
        if v != FUSED or model.has_blocks
    }
    exact, exact_error = attempt(attempts, first_losses, model, "torch.nn", True)
    compared = {
        "torch.nn": dict(
            losses=original,
            loss_yardstick=largest_difference(original, exact),
            loss_error=original_error or exact_error,
        ),
    } | {
        variant: dict(losses=losses, loss_difference=largest_difference(losses, original), loss_error=error)
        for variant, (losses, error) in ours.items()
    }
    for variant in VARIANTS:
        if variant == FUSED and not model.has_blocks:
            continue
        kept_bytes, _ = (
            attempt(attempts, kept, model, variant) if variant != "torch.compile" else (None, None)
        )
        spent, error = attempt(attempts, cost, model, variant) if ON_GPU else (None, None)
        yield (
            dict(
                operation=model.name,
                case=case,
                variant=variant,
                parameters=parameters,
                layers_replaced=layers_replaced if variant.startswith("normreg") else 0,
                kept_bytes=kept_bytes,
                precision="bfloat16 autocast" if AUTOCAST else "float32",
                error=error,
            )
            | (spent or dict(step_ms=None, peak_bytes=None, warm_up_s=None))
            | dict(losses=None, loss_difference=None, loss_yardstick=None, loss_error=None)
            | compared.get(variant, {})
        )


def add_arguments(parser):
    pass


def run(arguments, budget):
    if not ON_GPU:
        torch.set_num_threads(1)
        interpreter.speed_up()
    with worker.Worker(attempts_on_a_gpu) if ON_GPU else worker.Here(Attempts) as attempts:
        for model in budget.within(OPERATIONS[name] for name in arguments.operations or OPERATIONS):
            yield from measure(model, attempts)


def step_time(samples):
    p20, _, _, p80 = statistics.quantiles(samples, n=5, method="inclusive")
    return f"{statistics.median(samples):.2f} ({p20:.2f}-{p80:.2f})"


def speed_up(record, records):
    """Over the fastest variant of the same network that is not normreg's."""
    if record["variant"] not in ("normreg", FUSED):
        return "-"
    medians = {
        other["variant"]: statistics.median(other["step_ms"])
        for other in records
        if other["case"] == record["case"] and other["step_ms"]
    }
    ours = medians.get(record["variant"])
    medians = {variant: median for variant, median in medians.items() if not variant.startswith("normreg")}
    return f"{min(medians.values()) / ours:.2f}x" if ours and medians else "not measured"


def table(records):
    headers = (
        "network", "variant", "layers replaced", "step ms (p20-p80)", "peak memory GiB", "kept MiB",
        "speed-up", "loss difference", "yardstick",
    )  # fmt: skip
    yardsticks = {r["case"]: r["loss_yardstick"] for r in records if r["variant"] == "torch.nn"}
    rows, errors = [], []
    for record in records:
        unknown = "failed" if record["error"] else "not measured"
        differences = "-", "-"
        if record["variant"] in ("normreg", FUSED):
            values = record["loss_difference"], yardsticks.get(record["case"])
            differences = ("failed" if value is None else f"{value:.1e}" for value in values)
        rows.append(
            (
                record["case"],
                record["variant"],
                record["layers_replaced"],
                step_time(record["step_ms"]) if record["step_ms"] else unknown,
                f"{record['peak_bytes'] / 2**30:.2f}" if record["peak_bytes"] else unknown,
                f"{record['kept_bytes'] / 2**20:.2f}" if record["kept_bytes"] else "-",
                speed_up(record, records),
                *differences,
            )
        )
        errors += [
            f"{record['case']}, {record['variant']}: {error.splitlines()[0]}"
            for error in (record["error"], record["loss_error"])
            if error
        ]
    return "\n".join([tables.markdown(headers, rows), *errors])


CAPTION = (
    "whole training steps; speed-up over the faster of torch.nn and torch.compile; largest difference of the "
    f"first {COMPARED_STEPS} losses between normreg and torch.nn, dropout off; yardstick: torch.nn's own to "
    f"{str(HIGHER_PRECISION).removeprefix('torch.')}"
)

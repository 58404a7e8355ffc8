"""Whole training steps of five networks before and after `normreg.replace`, and with fused blocks.

Every variant of a network starts from the same seed, so from the same weights and the same random batch, and
trains on it with AdamW. On a GPU the networks have their published sizes and train under bfloat16 autocast
with float32 weights, the convolutional ones in channels_last. A further baseline is torch.compile of a
network together with its loss. A step is timed from end to end: forward, backward and optimizer. Peak memory
is that of such steps, weights and optimizer included.

Kept bytes are those that autograd keeps for the backward of a step, beside parameters and batch, with
dropout on. They are counted with and without a GPU.

Losses are compared with dropout off, over the first steps. The effect of rounding is measured, too: the
yardstick is torch.nn's own distance from the same training in float32 throughout.

Without a GPU a tiny version of each network runs in Triton's interpreter in float32, for the losses and the
kept bytes, and the yardstick's training is in float64. Time and peak memory are not measured then.
"""

import gc

import torch

import normreg
from bench.harness import worker
from bench.lab import interpreter
from bench.perf.models import networks, variants
from bench.perf.models.tables import printed as table
from bench.perf.models.variants import FUSED, Model

__all__ = ["CAPTION", "OPERATIONS", "add_arguments", "run", "table"]

VARIANTS = ("torch.nn", "normreg", FUSED, *["torch.compile"] * variants.ON_GPU)
SILENCE_S = 600  # an attempt that takes longer hangs

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
            # at the published layer scale of 1e-6 the blocks have hardly any effect on the first losses
            dict(depths=(1, 1, 1, 1), widths=(16, 24, 32, 40), layer_scale=1.0) | TINY_IMAGES,
            channels_last=True,
        ),
    )
}


class Attempts:
    """The object of a worker, which makes one attempt after another; a failed one ends its process."""

    def make(self, function, *arguments):
        """Yields the function's result, after giving back the GPU's memory of the last attempt."""
        if variants.ON_GPU:
            gc.collect()
            torch.compiler.reset()
            torch.cuda.empty_cache()
        yield function(*arguments)


def attempts_on_a_gpu():
    torch.backends.cudnn.allow_tf32 = False  # the yardstick is float32
    torch.backends.cudnn.benchmark = True
    return Attempts()


def attempt(attempts, function, *arguments):
    """Returns (result, None), or (None, what went wrong)."""
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
    """Yields a record for each variant of a network."""
    network, inputs, _ = model.build("meta")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    case = f"{model}, {parameters:,} parameters, input {'x'.join(map(str, inputs.shape))}"
    replaced = len(normreg.replace(network).changed)
    tried = [variant for variant in VARIANTS if variant != FUSED or model.has_blocks]

    # losses first, so that libraries have allocated their workspaces before memory is measured
    losses = compared_losses(model, attempts, tried)
    for variant in tried:
        kept_bytes = spent = error = None
        if variant != "torch.compile":
            kept_bytes, _ = attempt(attempts, variants.kept, model, variant)
        if variants.ON_GPU:
            spent, error = attempt(attempts, variants.cost, model, variant)
        record = dict(operation=model.name, case=case, variant=variant, parameters=parameters)
        record |= dict(layers_replaced=replaced if variant.startswith("normreg") else 0)
        record |= dict(kept_bytes=kept_bytes, error=error)
        record |= dict(precision="bfloat16 autocast" if variants.AUTOCAST else "float32")
        record |= spent or dict.fromkeys(("step_ms", "peak_bytes", "warm_up_s"))
        record |= dict.fromkeys(("losses", "loss_difference", "loss_yardstick", "loss_error"))
        yield record | losses.get(variant, {})


def compared_losses(model, attempts, tried):
    """{variant: its first losses and how far they are from torch.nn's}; torch.compile's are not compared."""
    original, original_error = attempt(attempts, variants.first_losses, model, "torch.nn")
    ours = {v: attempt(attempts, variants.first_losses, model, v) for v in tried if v.startswith("normreg")}
    exact, exact_error = attempt(attempts, variants.first_losses, model, "torch.nn", True)
    found = {
        variant: dict(losses=losses, loss_difference=largest_difference(losses, original), loss_error=error)
        for variant, (losses, error) in ours.items()
    }
    yardstick, error = largest_difference(original, exact), original_error or exact_error
    return found | {"torch.nn": dict(losses=original, loss_yardstick=yardstick, loss_error=error)}


def add_arguments(parser):
    pass


def run(arguments, budget):
    if not variants.ON_GPU:
        torch.set_num_threads(1)
        interpreter.speed_up()
    with worker.Worker(attempts_on_a_gpu) if variants.ON_GPU else worker.Here(Attempts) as attempts:
        for model in budget.within(OPERATIONS[name] for name in arguments.operations or OPERATIONS):
            yield from measure(model, attempts)


CAPTION = (
    "whole training steps; speed-up over the faster of torch.nn and torch.compile; largest difference of the "
    f"first {variants.COMPARED_STEPS} losses between normreg and torch.nn, dropout off; yardstick: "
    f"torch.nn's own to {str(variants.HIGHER_PRECISION).removeprefix('torch.')}"
)

"""Results of the study's experiments, made up so that each claim holds, and so that none does."""

import itertools

import pytest

for library in ("matplotlib", "scipy", "sklearn"):
    pytest.importorskip(library)

from bench.study import by_name, data  # noqa: E402

SEEDS = range(5)


def jittered(make):
    return {str(seed): make(0.002 * (seed % 3)) for seed in SEEDS}


def depth_results(good):
    def cell(j, activation, gradient, loss):
        values = dict(activation=[0, activation + j], gradient=[gradient + j, 0], loss=loss + j)
        return values | dict(flags=[], rate=0.1)

    vanish, keep, explode = (-16, -0.5, 8) if good else (0, 5, 0)
    steady, plain, norm = (0.1, 0.5, 0.1) if good else (9, 0.1, 0.5)

    def make(j):
        found = {
            "none, 1/n": cell(j, vanish, vanish, plain),
            "none, 2/n": cell(2 * j, keep, keep, 0.2),
            "none, 3/n": cell(j, explode, explode, plain),
        }
        for name, variance in itertools.product(("BatchNorm", "LayerNorm"), (1, 2, 3)):
            found[f"{name}, {variance}/n"] = cell(j, steady, steady, norm)
        return found

    return jittered(make)


def fully_connected_results(good):
    def make(j):
        low, high = (-3 + j, -2 + 2 * j) if good else (-2 + j, -3 + 2 * j)
        training = {"none": low, "BatchNorm": low, "LayerNorm": high}
        told = {"before": 0.7 + j, "BatchNorm": 0.7, "LayerNorm": 0.5 + 2 * j}
        if not good:
            told = {"before": 0.7 + j, "BatchNorm": 0.5, "LayerNorm": 0.8 + 2 * j}
        told = {k: dict(accuracy=v, variation=1.0, correlation=1.0, example=[1, 2]) for k, v in told.items()}
        return {
            name: dict(training={k: dict(loss=v, rate=0.1) for k, v in training.items()}, norms=told)
            for name in data.LOADERS
        }

    return jittered(make)


def generalisation_results(good):
    module = by_name("generalisation")

    def make(j):
        found = {}
        for (i, p), (k, decay) in itertools.product(enumerate(module.DROPOUTS), enumerate(module.DECAYS)):
            sign = -1 if good else 1
            gap = 1 + sign * 0.1 * (i + k)
            test = 1 + sign * 0.05 * (i + k) + j * (1 + i + 2 * k)
            found[module.key(p, decay)] = dict(train=0.001, validation=test, test=test, gap=gap, accuracy=0.9)
        return found

    return jittered(make)


def shift_results(good):
    module = by_name("shift")
    # clean and shifted
    of = dict(zip(module.METHODS, [(0.97, 0.6), (0.9, 0.7), (0.9, 0.7), (0.97, 0.8), (0.97, 0.5)]))
    if not good:
        of = dict(zip(module.METHODS, [(0.5, 0.8), (0.9, 0.7), (0.9, 0.7), (0.97, 0.6), (0.97, 0.9)]))

    def make(j):
        values = {
            method: [clean + j * (1 + i), *[shifted + j * i] * 5]
            for i, (method, (clean, shifted)) in enumerate(of.items())
        }
        return dict.fromkeys(data.CORRUPTIONS, values)

    return jittered(make)


def landscape_results(good):
    def make(j):
        rough, smooth = (1.0 + j, 0.5) if good else (0.5, 1.0 + j)
        quantities = by_name("landscape").QUANTITIES
        return {
            norm: {name: [value, value] for name in quantities} | dict(loss=[2, 1])
            for norm, value in (("none", rough), ("BatchNorm", smooth))
        }

    return jittered(make)


def interactions_results(good):
    module = by_name("interactions")
    levels = [{level: i for i, level in enumerate(names)} for names in module.FACTORS.values()]

    def accuracy(cell, j):
        preset, norm, optimizer, decay, dropout = (at[level] for at, level in zip(levels, cell))
        normed, parity = norm > 0, 1 - 2 * ((optimizer + decay + dropout) % 2)
        if not good:
            normed = not normed
        return (
            0.5
            + (0.1 if good else 0.3) * normed
            + (0.02 + j) * preset * (not normed)
            + 0.02 * dropout * (not normed)
            + 0.02 * decay * ((optimizer == 0) is good)
            + 0.2 * parity * good
            + j * norm * dropout
            + j * optimizer * decay
        )

    return jittered(lambda j: {module.key(cell): accuracy(cell, j) for cell in module.CELLS})


MADE_UP = {
    "depth": depth_results,
    "fully_connected": fully_connected_results,
    "generalisation": generalisation_results,
    "shift": shift_results,
    "landscape": landscape_results,
    "interactions": interactions_results,
}

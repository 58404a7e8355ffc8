"""The experiments of bench/study: verdicts in both directions, what they compute, and the committed page."""

import math
from pathlib import Path

import pytest
import torch

for library in ("matplotlib", "scipy", "sklearn"):
    pytest.importorskip(library)

from made_up_results import MADE_UP, generalisation_results, landscape_results  # noqa: E402

from bench.study import NAMES, by_name, data, experiment, page, tasks, training  # noqa: E402
from bench.study import __main__ as runner  # noqa: E402
from bench.study.experiment import HELD, NOT_HELD, OPPOSITE, exceeds, lies  # noqa: E402
from normreg.kernels import cpu  # noqa: E402

FOLDER = Path(page.__file__).parent
LARGEST_PICTURE = 150_000  # bytes


@pytest.fixture(autouse=True)
def guarded_memory():
    """Guards nothing: guards would make thousands of small steps slow."""


@pytest.fixture(autouse=True)
def as_without_the_interpreter(monkeypatch):
    """Hands every call to torch, because training in the interpreter would be too slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small steps on two threads wait for each other
    monkeypatch.setattr(cpu, "KERNELS", None)
    yield
    torch.set_num_threads(threads)


LARGER, SMALLER = [1.1, 1.2, 1.0, 1.15, 1.05], [0.1, 0.3, 0.2, 0.0, 0.1]
NOISE = [1.0, -1.0, 0.5, -0.5, 0.1]


@pytest.mark.parametrize(
    ("larger", "smaller", "by", "outcome"),
    [
        (LARGER, SMALLER, 0, HELD),
        (SMALLER, LARGER, 0, OPPOSITE),
        (NOISE, [0] * 5, 0, NOT_HELD),
        (LARGER, SMALLER, 0.5, HELD),
        (LARGER, SMALLER, 2, NOT_HELD),
        (SMALLER, LARGER, 2, NOT_HELD),
        (SMALLER, SMALLER, -0.1, HELD),
        (SMALLER, LARGER, -0.1, OPPOSITE),
        (SMALLER, SMALLER, 0, NOT_HELD),
        ([1, 1, 1], [0, 0, 0], 0, HELD),
    ],
)
def test_exceeds(larger, smaller, by, outcome):
    verdict = exceeds("A claim.", larger, smaller, "what", by=by)
    assert verdict.outcome == outcome
    assert f"above {by:g}" in verdict.criterion


@pytest.mark.parametrize(
    ("limits", "outcome"),
    [
        (dict(above=0), HELD),
        (dict(above=2), OPPOSITE),
        (dict(below=2), HELD),
        (dict(below=0.9), OPPOSITE),
        (dict(above=0, below=2), HELD),
        (dict(above=0, below=1.12), NOT_HELD),
        (dict(above=1.5, below=2), OPPOSITE),
    ],
)
def test_lies(limits, outcome):
    assert lies("A claim.", LARGER, "what", **limits).outcome == outcome


def test_the_probability_is_students():
    # t = 1 at four degrees of freedom
    values = [1 + math.sqrt(5) * d for d in (-1, 1, 0, 1, -1)]
    assert experiment.probability(values) == pytest.approx(0.187, abs=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_verdicts_go_both_ways(name):
    module = by_name(name)
    for good in (True, False):
        verdicts = module.verdicts(MADE_UP[name](good))
        wrong = [verdict for verdict in verdicts if (verdict.outcome == HELD) is not good]
        assert wrong == []
        assert all(str(experiment.LEVEL) in verdict.criterion for verdict in verdicts)
        assert len({verdict.claim for verdict in verdicts}) == len(verdicts)
        for _, headers, rows in module.tables(MADE_UP[name](good)):
            assert {len(row) for row in rows} == {len(headers)}


def test_strengths_are_chosen_by_the_validation_loss_alone():
    module = by_name("generalisation")
    results = generalisation_results(True)
    for result in results.values():
        result[module.key(0.3, 0)]["validation"] = -1
    assert module.chosen(results, module.ALONE["dropout"]) == [module.key(0.3, 0)] * len(results)
    assert module.test_losses(results, module.ALONE["dropout"]) == [
        result[module.key(0.3, 0)]["test"] for result in results.values()
    ]


def test_splits_are_disjoint_and_differ_by_seed():
    first, other = (data.split("digits", seed, 1000) for seed in (0, 1))
    assert [len(x) for x, _ in first] == [1000, 797]
    assert not torch.equal(first[0][0], other[0][0])
    rows = lambda part: {tuple(row) for row in part.tolist()}  # noqa: E731
    assert not rows(first[0][0]) & rows(first[1][0])
    x, _ = data.split("breast cancer", 0, 400)[0]
    torch.testing.assert_close(x.std(0).cpu(), torch.ones(30))


@pytest.mark.parametrize("corruption", data.CORRUPTIONS)
def test_corruptions_grow_with_severity(corruption):
    x = data.images(0, 100)[0][0]
    assert torch.equal(data.corrupted(x, corruption, 0, 0), x)
    distances = [(data.corrupted(x, corruption, s, 0) - x).norm().item() for s in data.SEVERITIES]
    assert distances == sorted(distances)
    assert 0.02 * x.norm() < distances[0] < distances[-1] / 2


def test_batches_are_passes_in_random_order():
    x = torch.arange(10)
    seen = [part.tolist() for part, _ in training.batches((x, x), 5, 4, seed=0)]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == x.tolist()
    assert seen[:2] != seen[2:]


def test_training_learns_decays_and_survives_divergence():
    (x, labels), _ = data.split("digits", 0, 200)
    norms = {}
    for decay in (0.0, 0.1):
        torch.manual_seed(0)
        model = training.network([64, 32, 10], "LayerNorm", 0.1)
        loss = training.train(model, training.sgd(model, 0.1), (x, labels), 60, 0, weight_decay=decay)
        norms[decay] = sum(p.norm() for p in model.parameters())
        assert loss < 2
    assert norms[0.1] < 0.8 * norms[0.0]
    diverged = training.train(model, training.sgd(model, 1e30), (x, labels), 10, 0)
    assert diverged == experiment.LARGEST_LOSS


def test_statistics_of_the_test_batch_and_recalibrated_ones():
    module = by_name("shift")
    torch.manual_seed(0)
    model = module.convolutional_network(norm=True).eval()
    x = 3 + torch.randn(100, 1, 8, 8, device=data.DEVICE)
    expected = model[1].train()(model[0](x))
    model[1].reset_running_stats()
    by_batch = module.with_batch_statistics(model.eval())
    torch.testing.assert_close(by_batch[1](model[0](x)), expected)
    assert model[1].running_mean is not None
    again = module.recalibrated(model, x)
    torch.testing.assert_close(again[1].running_mean, model[0](x).mean((0, 2, 3)))
    assert not model[1].running_mean.any()


def test_the_weights_of_depth_have_the_variance_they_are_said_to_have():
    torch.manual_seed(0)
    model = training.network([64, *[64] * 3, 10])
    by_name("depth").scale_weights(model, 3)
    assert model[2].weight.var().item() == pytest.approx(3 / 64, rel=0.1)


def test_along_the_step():
    """The losses along a linear model's step are those computed by hand at one distance."""
    module = by_name("landscape")
    torch.manual_seed(0)
    model, x, labels = torch.nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
    before = [p.detach().clone() for p in model.parameters()]
    found = module.along_the_step(model, x, labels)
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before))
    loss, gradient = module.loss_and_gradient(model, x, labels)
    losses, changes, smoothness = [loss], [], []
    for distance in module.DISTANCES:
        with torch.no_grad():
            model.weight.copy_(before[0] - distance * gradient[:12].view(3, 4))
            model.bias.copy_(before[1] - distance * gradient[12:])
        there, gradient_there = module.loss_and_gradient(model, x, labels)
        losses.append(there)
        changes.append((gradient_there - gradient).norm().item())
        smoothness.append(changes[-1] / (distance * gradient.norm().item()))
    expected = (
        max(losses) - min(losses),
        max(changes),
        max(smoothness),
        max(changes) / gradient.norm().item(),
    )
    assert [10**value for value in found.values()] == pytest.approx(expected, rel=1e-3)


def test_interactions_of_an_additive_grid_explain_nothing():
    module = by_name("interactions")
    additive = {
        module.key(cell): sum(names.index(level) for names, level in zip(module.FACTORS.values(), cell))
        for cell in module.CELLS
    }
    assert module.additive_share(additive) == pytest.approx(1)


def test_the_same_seed_gives_the_same_numbers():
    results = [tasks.run_task(("landscape", 3, True))[0] for _ in range(2)]
    assert results[0] == results[1] != tasks.run_task(("landscape", 4, True))[0]


ENVIRONMENT = dict(
    date="2026-01-01", commit=None, uncommitted_changes=False, python="3", torch="2", triton="3", gpu=None
)


@pytest.mark.parametrize(
    "names", [("depth",), pytest.param(NAMES, marks=pytest.mark.slow)], ids=["one", "all"]
)
def test_a_quick_run(tmp_path, monkeypatch, capsys, names):
    monkeypatch.setattr(by_name("depth"), "LAYERS", 4)
    monkeypatch.setattr(runner.result_files, "environment", lambda: ENVIRONMENT)
    out = tmp_path / "study"
    chosen = ["--only", *names] if names != NAMES else []
    assert runner.main(["--quick", "--workers", "1", "--out", str(out), *chosen]) == 0
    written = {path.name for path in out.iterdir()}
    assert written == {"README.md", *(f"{name}.{suffix}" for name in names for suffix in ("json", "png"))}
    text = (out / "README.md").read_text()
    assert "with --quick" in text
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if not line.startswith("written")) <= 100
    assert printed.splitlines()[-1].startswith("These numbers mean nothing: with --quick, ")
    assert "torch's operators (there is no kernel for" in text or torch.cuda.is_available()
    assert text.count("![") == len(names)
    assert f"{len(names)} experiment" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1"], "--seeds: expected at least 2, for a deviation, got 1"),
        (["--workers", "0"], "--workers: expected at least 1, got 0"),
        (["--quick", "--out", str(FOLDER)], "would replace those of bench/study: leave --out out"),
        (["--only", "width"], "invalid choice: 'width'"),
    ],
)
def test_refused_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        runner.parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_a_quick_run_does_not_ask_where_to_write():
    """`make study STUDY_ARGS=--quick` is all that it takes."""
    assert runner.parse_arguments(["--quick"]).out == Path("build/study")
    assert runner.parse_arguments([]).out == FOLDER
    assert "-m bench.study $(STUDY_ARGS)" in (FOLDER.parents[1] / "Makefile").read_text()


def test_the_committed_page_is_what_the_committed_results_give():
    loaded = page.load(FOLDER)
    assert (FOLDER / "README.md").read_text() == page.render(loaded)
    assert tuple(loaded) == NAMES
    for name, found in loaded.items():
        assert len(found["results"]) >= 5
        assert not found["quick"]
        assert 0 < (FOLDER / f"{name}.png").stat().st_size < LARGEST_PICTURE


def test_the_page_follows_the_results():
    loaded = page.load(FOLDER)
    text = page.render(loaded)
    loaded["landscape"]["results"] = landscape_results(False)
    assert page.render(loaded) != text
    verdicts = page.verdicts(loaded)["landscape"]
    assert {verdict.outcome for verdict in verdicts} == {OPPOSITE}

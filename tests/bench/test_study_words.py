"""What the study's titles and tables say of results: claims, means with their deviation, and guessing."""

import pytest

for library in ("matplotlib", "scipy", "sklearn"):
    pytest.importorskip(library)

from bench.study import by_name, data, experiment  # noqa: E402
from bench.study.experiment import HELD, NOT_HELD, OPPOSITE  # noqa: E402


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (dict(a=HELD, b=HELD), "with a, or with b"),
        (dict(a=HELD, b=OPPOSITE), "with a, not with b"),
        (dict(a=HELD, b=NOT_HELD), "with a; with b 5 seeds do not show it"),
        (dict(a=NOT_HELD, b=OPPOSITE, c=HELD), "with c, not with b; with a 5 seeds do not show it"),
        (dict(a=NOT_HELD, b=OPPOSITE), "with neither a nor b, as far as 5 seeds show"),
        (dict(a=OPPOSITE, b=OPPOSITE), "with neither a nor b"),
    ],
)
def test_only_the_opposite_is_said_not_to_be(found, said):
    assert experiment.with_which(found, 5) == said


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([-15.3, -16.1], "-15.70 ± 0.57"),
        ([0.3621, 0.36215], "0.362125 ± 0.000035"),
        ([0.5, -0.5], "0.00 ± 0.71"),
        ([1.0, 15.0], "8.0 ± 9.9"),
        ([0.0, 14.1], "7 ± 10"),
        ([100.0, 900.0], "500 ± 566"),
        ([6.0, 6.0], "6 ± 0"),
    ],
)
def test_a_mean_has_the_digits_that_its_deviation_leaves(values, told):
    assert experiment.mean_and_deviation(values) == told


def test_guessing_is_the_share_of_the_most_frequent_class():
    module = by_name("fully_connected")
    (share,) = module.guessing("breast cancer", ["20"])
    labels = data.split("breast cancer", 20, module.TRAIN["breast cancer"])[0][1].tolist()
    assert share == pytest.approx(max(labels.count(0), labels.count(1)) / 400)

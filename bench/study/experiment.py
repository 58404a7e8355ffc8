"""The rules that experiments share: how a claim is judged, and how results are rounded.

An experiment is a module of this folder with

- TITLE and SETUP, which say on the page what was done;
- run(seed, quick) -> the results of one seed, as JSON has them;
- verdicts(results) -> [Verdict], from {seed: its results}, by criteria that stand in the code;
- tables(results) -> [(caption, headers, rows)];
- finding(verdicts) -> the sentence that is the figure's title, by the outcomes of the claims;
- plot(results) -> a matplotlib figure.
"""

import math
import statistics
from dataclasses import dataclass

from scipy import stats

HELD, NOT_HELD, OPPOSITE = "held", "did not hold", "did not hold; the opposite did"
OUTCOMES = HELD, NOT_HELD, OPPOSITE
LEVEL = 0.01  # of every test, because there are some thirty claims
ROUNDING = 1e-9  # relative to a difference; smaller deviations count as none
LARGEST_LOSS = 1e6  # the loss of a run that diverged: one was not finite, or the last are larger


@dataclass(frozen=True)
class Verdict:
    claim: str
    criterion: str
    outcome: str
    evidence: str
    seeds: int


def outcomes(verdicts):
    """The outcome of every claim."""
    return {verdict.claim: verdict.outcome for verdict in verdicts}


def held(verdicts, claims):
    """Those keys of {key: claim} whose claim held."""
    outcome = outcomes(verdicts)
    return [key for key, claim in claims.items() if outcome[claim] == HELD]


def listed(names, none="none"):
    """Names as a sentence has them: "a, b and c"."""
    *others, last = names or [none]
    return f"{', '.join(others)} and {last}" if others else last


def with_which(outcome_of, seeds):
    """Names by their outcomes: "with a, or with b, not with c; with d 5 seeds do not show it".

    outcome_of: {name: outcome}. Only the opposite shows that something is not so.
    """
    of = {kind: [name for name, found in outcome_of.items() if found == kind] for kind in OUTCOMES}
    held = ", or ".join(f"with {name}" for name in of[HELD]) or f"with neither {' nor '.join(outcome_of)}"
    if not of[HELD]:
        return held + f", as far as {seeds} seeds show" * bool(of[NOT_HELD])
    held += f", not with {listed(of[OPPOSITE])}" * bool(of[OPPOSITE])
    return held + f"; with {listed(of[NOT_HELD])} {seeds} seeds do not show it" * bool(of[NOT_HELD])


def named(norm):
    """A norm, or none, as pictures and tables name it."""
    return norm.replace("none", "no norm")


def two(first, when, second, when_second):
    """Two findings in one sentence, which says only once when they hold, if that is the same."""
    return (
        f"{first}, and {second}, {when}"
        if when == when_second
        else f"{first} {when}, and {second} {when_second}"
    )


def diverged(loss):
    """Whether the logarithm of a loss is that of a run that diverged."""
    return loss >= math.log10(LARGEST_LOSS)


def steps(number, quick):
    return max(2, number // 50) if quick else number


def rounded(value):
    """A value with every number rounded to five digits, so that files are short; None for what JSON lacks."""
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def deviation(values):
    return statistics.stdev(values) if len(values) > 1 else 0.0


def mean_and_deviation(values):
    """Both rounded to the place of the deviation's second digit."""
    mean, spread = statistics.mean(values), deviation(values)
    if spread <= ROUNDING * abs(mean):
        return f"{mean:.3g} ± 0"
    places = max(0, 1 - math.floor(math.log10(float(f"{spread:.1e}"))))
    return f"{round(mean, places) + 0.0:.{places}f} ± {spread:.{places}f}"


def each(results, *keys):
    """One number of every seed, in the order of the seeds."""
    found = []
    for result in results.values():
        for key in keys:
            result = result[key]
        found.append(result)
    return found


def probability(differences):
    """The probability of a mean as large or larger, were the true one 0: Student's one-sided test."""
    if statistics.pstdev(differences) <= ROUNDING * max(map(abs, differences)):  # the test gives nan
        return 0.0 if statistics.mean(differences) > 0 else 1.0
    return float(stats.ttest_1samp(differences, 0, alternative="greater").pvalue)


def _shown(p):
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.1g}"


def exceeds(claim, larger, smaller, what, *, by=0.0):
    """Judges the claim that `larger` exceeds `smaller`, seed by seed, by more than `by` on average."""
    differences = [a - b for a, b in zip(larger, smaller, strict=True)]
    p = probability([d - by for d in differences])
    outcome = HELD if p < LEVEL else NOT_HELD
    if probability([-abs(by) - d for d in differences]) < LEVEL:
        outcome = OPPOSITE
    criterion = f"{what}: the difference is above {by:g} (one-sided paired t-test, p < {LEVEL})"
    evidence = (
        f"{mean_and_deviation(larger)} against {mean_and_deviation(smaller)}: difference "
        f"{mean_and_deviation(differences)}, {_shown(p)}"
    )
    return Verdict(claim, criterion, outcome, evidence, len(differences))


def lies(claim, values, what, *, above=None, below=None):
    """Judges the claim that the true mean lies above a limit, below one, or between two."""
    inside, outside, limits = [], [], []
    for limit, word, sign in ((above, "above", 1), (below, "below", -1)):
        if limit is not None:
            distances = [sign * (value - limit) for value in values]
            inside.append(probability(distances))
            outside.append(probability([-d for d in distances]))
            limits.append(f"{word} {limit:g}")
    outcome = HELD if max(inside) < LEVEL else OPPOSITE if min(outside) < LEVEL else NOT_HELD
    criterion = f"{what}: the mean is {' and '.join(limits)} (one-sided t-test, p < {LEVEL})"
    return Verdict(
        claim, criterion, outcome, f"{mean_and_deviation(values)}, {_shown(max(inside))}", len(values)
    )

"""Writes bench/study/README.md: every number on it is computed from the JSON files."""

import json

from bench.harness import pictures, tables

from . import NAMES, by_name
from .experiment import HELD, listed

HEADER = """\
# What normalisation and regularisation do, measured

Written by `python -m bench.study` from the results beside it; no number is typed. `make study` sets
everything up and runs it anew. Every claim has a criterion, which stands in the code of its experiment: a
one-sided t-test over the seeds, at the level of 1 %. **held** means that the data show the claim; **did not
hold** that they do not, and "the opposite did" that they show it to be false. ± is the standard deviation
over the seeds; another seed is another split of the data, other weights and other batches. The experiments
were tried out, and their sizes chosen, with other seeds than those that count. The networks are small and
trained briefly: what holds here need not elsewhere, nor the reverse.
"""


def load(folder):
    """The contents of the experiments' files, in the order of the page: {experiment: contents}."""
    paths = {name: folder / f"{name}.json" for name in NAMES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def ran(loaded):
    """The circumstances of the runs, a line for all experiments that share them."""
    lines = {}
    for name, found in loaded.items():
        one = found["environment"]
        seeds = [int(seed) for seed in found["results"]]
        where = (
            f"{len(seeds)} seeds ({range_of(seeds)}), {one['gpu'] or 'no GPU'}, "
            f"torch {one['torch']}, triton {one['triton']}, "
            f"Python {one['python']}, commit {(one['commit'] or 'unknown')[:12]}"
            f"{' with uncommitted changes' if one['uncommitted_changes'] else ''}, {one['date'][:10]}; "
            f"normreg's layers: {found['path']}{'; with --quick' if found['quick'] else ''}"
        )
        lines.setdefault(where, []).append(name)
    return [f"- {', '.join(names)}: {where}" for where, names in lines.items()]


def range_of(seeds):
    return listed(map(str, seeds)) if len(seeds) < 3 else f"{min(seeds)} to {max(seeds)}"


def verdicts(loaded):
    return {name: by_name(name).verdicts(found["results"]) for name, found in loaded.items()}


def render(loaded):
    judged = verdicts(loaded)
    held = sum(verdict.outcome == HELD for found in judged.values() for verdict in found)
    total = sum(map(len, judged.values()))
    lines = [HEADER, *ran(loaded), ""]
    lines += [f"{held} of {total} claims held.", ""]
    for name, found in loaded.items():
        module, results = by_name(name), found["results"]
        lines += [
            f"## {module.TITLE}",
            "",
            module.SETUP,
            "",
            f"![{module.finding(judged[name])}]({name}.png)",
            "",
        ]
        rows = [
            (number, verdict.claim, f"**{verdict.outcome}**", verdict.evidence)
            for number, verdict in enumerate(judged[name], 1)
        ]
        lines += [tables.markdown(("", "claim", "verdict", "evidence"), rows), ""]
        lines += ["<details><summary>Criteria of the claims</summary>", "", *criteria(judged[name])]
        lines += ["", "</details>", ""]
        for caption, headers, rows in module.tables(results):
            lines += [caption, "", tables.markdown(headers, rows), ""]
    return "\n".join(lines)


def criteria(found):
    """A line for each criterion, with the numbers of its claims."""
    numbers = {}
    for number, verdict in enumerate(found, 1):
        numbers.setdefault(verdict.criterion, []).append(str(number))
    return [f"- {listed(of)}: {sentence(criterion)}" for criterion, of in numbers.items()]


def sentence(text):
    return f"{text[0].upper()}{text[1:]}."


def figure(name, results):
    """The experiment's figure, with its finding as the title."""
    module = by_name(name)
    with pictures.styled():
        drawn = module.plot(results)
        pictures.title(drawn, f"{module.finding(module.verdicts(results))}.")
    return drawn


def write(folder):
    """Writes the page and draws its figures; returns their paths."""
    loaded = load(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "README.md"]
    paths[0].write_text(render(loaded))
    for name, found in loaded.items():
        paths.append(folder / f"{name}.png")
        with pictures.styled():
            pictures.save(figure(name, found["results"]), paths[-1])
    return paths

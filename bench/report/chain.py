"""README's figure of fused calls beside torch's operators, bytes and launches, and its page."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.harness import pictures, tables
from bench.harness.result_files import load, records_of
from bench.perf.chain import CHAINS, DIRECTIONS
from bench.report.pages import paragraph

IMAGE = "docs/images/bytes_and_launches.png"
GREY = "#9a9a9a"  # told from the blue in grey, too


@dataclass(frozen=True)
class Compared:
    """A fused call beside torch's chain: bytes an element and launches, forward and backward together."""

    label: str
    bytes: float
    launches: int
    chain_bytes: float
    chain_launches: int

    @property
    def fraction(self):
        return self.bytes / self.chain_bytes


def by_call(machine, part):
    """{(case, direction): record} of a part's results."""
    runs = [run for found in load(machine, part).values() for run in found]
    return {(record["case"], record["direction"]): record for record in records_of(runs)}


def total(records, elements):
    """Bytes an element and launches of all records, those of torch's operators included."""
    kinds = "launches", "torch_operators"
    launches = sum(len(record.get(kind, ())) for record in records for kind in kinds)
    return sum(record["moved_bytes"] for record in records) / elements, launches


def compared(machine):
    """The chains that both parts have counted, from the most that is saved to the least."""
    ours, chains = by_call(machine, "ledger"), by_call(machine, "chain")
    found = []
    for chain in CHAINS:
        calls = [(str(chain.case), direction) for direction in DIRECTIONS]
        if all(call in ours and call in chains for call in calls):
            elements = chains[calls[0]]["elements"]
            sides = [total([side[call] for call in calls], elements) for side in (ours, chains)]
            found.append(Compared(chain.label, *sides[0], *sides[1]))
    return sorted(found, key=lambda one: one.fraction)


def range_of(numbers, form):
    low, high = (form.format(number) for number in (min(numbers), max(numbers)))
    return low if low == high else f"{low} to {high}"


def fused(found):
    return [one for one in found if "+" in one.label]


def title(found):
    """What the figure shows, in two lines."""
    bytes = range_of([round(100 * one.fraction) for one in fused(found)], "{}")
    ours = range_of([one.launches for one in fused(found)], "{}")
    theirs = range_of([one.chain_launches for one in fused(found)], "{}")
    launches = f"{ours} launches instead of {theirs}"
    return f"Fused calls move {bytes} % of the bytes of torch's\noperators, in {launches}"


def rows(found):
    for one in found:
        theirs = f"{one.chain_bytes:.1f}", one.chain_launches
        yield (one.label, *theirs, f"{one.bytes:.1f}", one.launches, f"{one.fraction:.0%}")


HEADERS = ("forward + backward", "torch B", "torch launches", "normreg B", "normreg launches", "B ratio")
CONDITIONS = (
    "Counted, not timed: bytes an element (B) and launches of a forward and a backward together, in "
    "bfloat16. torch's are the least of its eager operators (torch {torch}): each reads every tensor "
    "once, writes every result once and is one launch, where some are several. Ours are what code "
    "compiled for an H100 moves while a CPU executes it, partial results included. torch.compile fuses "
    "such operators, too; what it moves is not counted. LayerNorm alone saves nothing. "
)
README, PAGE = Path("README.md"), Path("docs/benchmarks/chain.md")
# where a page sends its reader for the shapes
SHAPES = {
    README: f"[Numbers, shapes, every operator]({PAGE}).",
    PAGE: "The shapes are those of [every operator](#every-operator). QK norm's elements are q's and k's "
    "together, of which the ledger counts pairs.",
}


def shown(results, page):
    """The figure and its conditions; on the page of its own also the numbers as a table."""
    machine = results / "no-gpu"
    if not (found := compared(machine)):
        return "Not counted.\n"
    (torch,) = {run["environment"]["torch"] for runs in load(machine, "chain").values() for run in runs}
    lines = [f"![{title(found)}]({os.path.relpath(IMAGE, page.parent)})".replace("\n", " "), ""]
    if page == PAGE:
        lines += [tables.markdown(HEADERS, rows(found)), ""]
    lines += [paragraph(CONDITIONS.format(torch=torch.partition("+")[0]) + SHAPES[page]), ""]
    return "\n".join(lines)


def section(results):
    return shown(results, README)


def told_operator(record, name, moved, number):
    """An operator and its bytes an element: "2 `mul` 6.00" for two that are alike."""
    times = f"{number} " if number > 1 else ""
    return f"{times}`{name.removeprefix('aten::')}` {moved / record['elements']:.2f}"


def page(results):
    return shown(results, PAGE)


def operators(results):
    """Every operator of every chain."""
    calls, lines = by_call(results / "no-gpu", "chain"), []
    for chain in CHAINS:
        records = [calls[call] for direction in DIRECTIONS if (call := (str(chain.case), direction)) in calls]
        lines += [f"### {chain.label}", "", f"`{chain.case}`", ""] * bool(records)
        for record in records:
            counts = Counter((one["name"], one["bytes"]) for one in record["torch_operators"])
            told = (told_operator(record, *one, number) for one, number in counts.items())
            lines += [f"- {record['direction']}: {', '.join(told)}"]
        lines += [""] * bool(records)
    return "\n".join(lines)


def in_lines(label):
    """A label with its last part in a line of its own."""
    *others, last = label.split(" + ")
    return " + ".join(others) + "\n+ " + last if others else last


def draw(path, found):
    """Draws a pair of bars for each chain, with bytes and launches beside them; wide enough for a phone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.25, 5.4))
    panel = figure.add_axes((0.3, 0.075, 0.69, 0.745))
    height, longest = 0.42, max(one.chain_bytes for one in found)
    sides = (("torch's operators, at least", "chain_", GREY, -1), ("normreg", "", pictures.COLORS[0], 1))
    for label, prefix, color, side in sides:
        places = [place + side * height / 2 for place in range(len(found))]
        bytes = [getattr(one, f"{prefix}bytes") for one in found]
        panel.barh(places, bytes, height, color=color, label=label)
        for place, moved, one in zip(places, bytes, found):
            text = f"{moved:.1f} B, {getattr(one, f'{prefix}launches')} launches"
            panel.text(moved + longest / 80, place, text, va="center", fontsize=11.5)
    panel.set_yticks(range(len(found)), [in_lines(one.label) for one in found], fontsize=12)
    panel.set_ylim(len(found) - 0.45, -0.55)
    panel.set_xlim(0, 1.63 * longest)
    panel.set_xticks([])
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    figure.text(0.015, 0.985, title(found), fontsize=14, fontweight="bold", va="top")
    look = dict(loc="upper left", ncols=2, fontsize=12, frameon=False, handlelength=1.2)
    figure.legend(*panel.get_legend_handles_labels(), bbox_to_anchor=(0, 0.89), **look)
    below = "Bytes an element, forward + backward, bfloat16. Counted, not timed."
    figure.text(0.015, 0.018, below, fontsize=11.5)
    pictures.save(figure, path)


def write_image(results, root):
    """Writes the figure; returns its path, or None where nothing was counted."""
    if found := compared(results / "no-gpu"):
        draw(root / IMAGE, found)
        return root / IMAGE

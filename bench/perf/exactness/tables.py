"""Tables and plots of errors over torch's own."""

from bench.harness import tables
from bench.perf.exactness.data import CONSTANT, DATA

# the most a ratio may be
TARGETS = {"y": 1.15, "dx": 1.15, "dresidual": 1.15, "dgate": 1.15, "dweight": 1.5, "dbias": 1.5}
COLORS = dict(zip(TARGETS, ("#0072b2", "#d55e00", "#e69f00", "#56b4e9", "#009e73", "#cc79a7"), strict=True))
SHOWN = 0.1, 300.0  # ratios that a plot has room for; others lie on its edge
TICKS = 0.1, 0.3, 1, 3, 10, 30, 100, 300


def is_missed(found, name):
    """Whether a ratio is above its target by more than its standard error: dweight's, if it has none."""
    return not found["ratio"] - found["standard_error"] <= TARGETS.get(name, TARGETS["dweight"])


def bold(text, condition):
    return f"**{text}**" if condition else text


def cell(record, name):
    if (found := record["results"].get(name)) is None:
        return ""
    return bold(f"{found['ratio']:.2f} ± {found['standard_error']:.2f}", is_missed(found, name))


def of_constant(record):
    return "exactly the bias" if record["exact"] else "**not the bias**"


def rows_of(records):
    """A row for each case and kind of data."""
    rows = []
    for record in records:
        if record["data"] == CONSTANT:
            cells = [of_constant(record), *[""] * (len(TARGETS) - 1)]
        else:
            cells = [cell(record, name) for name in TARGETS]
        rows.append((record["case"], record["data"], *cells, record["on"]))
    return rows


def table(records):
    """The table for a page."""
    return tables.markdown(("case", "data", *TARGETS, "kernels"), rows_of(records))


def printed(records):
    """The table for a terminal."""
    rows = [
        (case, on, data, *(cell.replace(" ± ", "±") for cell in cells))
        for case, data, *cells, on in rows_of(records)
    ]
    return tables.text(("case", "kernels", "data", *TARGETS), rows, grouped=2)


def by_case(records):
    """{(case, kernels): (records of drawn data, what constant rows give)}"""
    found = {}
    for record in records:
        drawn, constant = found.setdefault((record["case"], record["on"]), ([], []))
        if record["data"] == CONSTANT:
            constant.append(of_constant(record))
        else:
            drawn.append(record)
    return found


def plain_and_worst(drawn, name):
    """ "1.07, 1.12 (50 first)": a result's ratio on plain numbers, and the largest."""
    found = {record["data"]: record["results"][name] for record in drawn if name in record["results"]}
    if not found:
        return ""
    worst = max(found, key=lambda data: found[data]["ratio"])
    missed = any(is_missed(one, name) for one in found.values())
    text = f"{found['randn']['ratio']:.2f}, {found[worst]['ratio']:.2f} ({worst})"
    return bold(text, missed)


def summary(records):
    """A row for each case: each result's ratio on plain numbers, and the largest on all data."""
    rows = [
        (case, *(plain_and_worst(drawn, name) for name in TARGETS), *(constant or [""]), on)
        for (case, on), (drawn, constant) in by_case(records).items()
    ]
    return tables.markdown(("case", *TARGETS, CONSTANT, "kernels"), rows)


def points(panel, drawn, name, shift):
    """Draws a result's ratios by data, shifted beside those of other results."""
    low, high = SHOWN
    places = [list(DATA).index(record["data"]) + shift for record in drawn]
    ratios = [min(max(record["results"][name]["ratio"], low), high) for record in drawn]
    errors = [record["results"][name]["standard_error"] for record in drawn]
    below, above = zip(*((min(e, r - low), min(e, high - r)) for e, r in zip(errors, ratios)))
    look = dict(fmt="o", color=COLORS[name], markersize=4, capsize=2, clip_on=False)
    panel.errorbar(places, ratios, (below, above), label=name, **look)


def panel_of(panel, case, drawn):
    """Draws a case: its results by data, and the targets as lines."""
    names = [name for name in TARGETS if name in drawn[0]["results"]]
    for place, name in enumerate(names):
        points(panel, drawn, name, 0.14 * (place - (len(names) - 1) / 2))
    panel.axhline(1, color="black", linewidth=0.8)
    for name in ("y", "dweight"):
        panel.axhline(TARGETS[name], color=COLORS[name], linewidth=1.2, linestyle="--")
    panel.set_title(case, fontsize=9)
    panel.set(yscale="log", ylim=SHOWN)
    panel.set_xticks(range(len(DATA)), DATA, rotation=45, ha="right", fontsize=8)
    panel.grid(alpha=0.3)


def plot(path, operation, records):
    """Plots ratios by data, a panel a case."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    cases = by_case(records)
    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(4.4 * columns, 2.9 * rows + 1.2), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for panel, ((case, on), (drawn, _)) in zip(panels.flat, cases.items()):
        panel_of(panel, f"{case}\n{on}", drawn)
        panel.yaxis.set_major_locator(FixedLocator(TICKS))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())
    for panel in list(panels.flat)[len(cases) :]:
        panel.set_axis_off()
    figure.supylabel("error over torch's, root mean square", fontsize=9)
    targets = f"{TARGETS['y']} for y and dx, {TARGETS['dweight']} for gradients of parameters"
    figure.suptitle(f"{operation}: targets dashed, {targets}", fontsize=10)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(TARGETS))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})


WHAT = (
    "Errors against float64 over those of torch's own operators, root mean square over elements and seeds: "
    "1 is as exact as torch. Rows, channels or groups hold normal numbers (randn), with an outlier of 50 or "
    "1e4 at their first, middle or any place, or with a mean of 10 or 1e6. Bold is above its target: "
    f"{TARGETS['y']} for y and gradients of its size, {TARGETS['dweight']} for gradients of parameters."
)
OF_A_CELL = "Here each result has its ratio on randn, then the largest one, with the data that give it."
OF_16_BITS = "In 16 bits, where rounding the result is most of the error, the largest ratio is"


def section(records):
    """README's lines: float32, a row a case, and the worst of 16 bits."""
    if not records:
        return []
    single = [record for record in records if " fp32 " in record["case"]]
    lines = ["### Exactness, against torch's own error", "", WHAT, OF_A_CELL, "", summary(single)]
    others = [
        (found["ratio"], f"{name} of {record['case']}, {record['data']}")
        for record in records
        if " fp32 " not in record["case"]
        for name, found in record.get("results", {}).items()
    ]
    if others:
        ratio, of = max(others)
        lines += ["", f"{OF_16_BITS} {ratio:.2f}: {of}."]
    return lines

"""Tables and plots of errors over torch's own."""

from bench.harness import pictures, tables
from bench.perf.exactness.data import CONSTANT, DATA

# the most a ratio may be
TARGETS = {"y": 1.15, "dx": 1.15, "dresidual": 1.15, "dgate": 1.15, "dweight": 1.5, "dbias": 1.5}
COLORS = dict(zip(TARGETS, ("#0072b2", "#d55e00", "#e69f00", "#56b4e9", "#009e73", "#cc79a7"), strict=True))
SHOWN = 0.03, 3.0  # ratios that a plot has room for; others lie on its edge
TICKS = 0.03, 0.1, 0.3, 1, 3


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


def table(records):
    """A row for each case and kind of data."""
    rows = []
    for record in records:
        if record["data"] == CONSTANT:
            cells = [of_constant(record), *[""] * (len(TARGETS) - 1)]
        else:
            cells = [cell(record, name).replace(" ± ", "±") for name in TARGETS]
        rows.append((record["case"], record["on"], record["data"], *cells))
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
    for name, of in (("y", "y and gradients of its size"), ("dweight", "gradients of parameters")):
        line = dict(color=COLORS[name], linewidth=1.2, linestyle="--")
        panel.axhline(TARGETS[name], label=f"target of {of}, {TARGETS[name]}", **line)
    panel.set_title(case, fontsize=11)
    panel.set(yscale="log", ylim=SHOWN, xlim=(-0.5, len(DATA) - 0.5))
    panel.set_xticks(range(len(DATA)), DATA, rotation=45, ha="right", fontsize=10)
    panel.grid(alpha=0.3)


def finding(operation, records):
    """The title of a plot: the largest of all ratios."""
    ratios = [one["ratio"] for record in records for one in record.get("results", {}).values()]
    return f"{operation}: no error is above {max(ratios):.2f} times torch's own"


def plot(path, operation, records):
    """Plots ratios by data, a panel a case."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    cases = by_case(records)
    columns = min(2, len(cases))
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 1.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    legend = {}
    for panel, ((case, _), (drawn, _)) in zip(panels.flat, cases.items()):
        panel_of(panel, case, drawn)
        panel.yaxis.set_major_locator(FixedLocator(TICKS))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())
        handles, labels = panel.get_legend_handles_labels()
        legend |= zip(labels, handles)
    for panel in list(panels.flat)[len(cases) :]:
        panel.set_axis_off()
    figure.supylabel("error over torch's, root mean square", fontsize=11)
    figure.suptitle(finding(operation, records), fontsize=13)
    named = sorted(legend, key=lambda label: label.startswith("target"))
    look = dict(loc="outside lower center", ncols=2, fontsize=10)
    figure.legend([legend[label] for label in named], named, **look)
    pictures.save(figure, path)


WHAT = (
    "Errors against float64 over those of torch's own operators, root mean square over elements and seeds: "
    "1 is as exact as torch. Rows, channels or groups hold normal numbers (randn), with an outlier of 50 or "
    "1e4 at their first, middle or any place, or with a mean of 10 or 1e6. Bold is above its target: "
    f"{TARGETS['y']} for y and gradients of its size, {TARGETS['dweight']} for gradients of parameters."
)
OF_16_BITS = "In 16 bits, where rounding the result is most of the error, the largest ratio is"

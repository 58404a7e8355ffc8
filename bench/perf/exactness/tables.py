"""Tables and plots of errors over torch's own."""

from bench.harness import pictures, tables
from bench.perf.exactness.data import CONSTANT, DATA

OF_ITS_SIZE, OF_PARAMETERS = 1.15, 1.5
# the most a ratio may be
TARGETS = dict.fromkeys(("y", "dx", "dresidual", "dgate"), OF_ITS_SIZE)
TARGETS |= dict.fromkeys(("dweight", "dbias", "dscale", "dshift"), OF_PARAMETERS)
# dscale and dshift are ada_norm's, which has no dweight and dbias
COLORS = dict(zip(TARGETS, [pictures.COLORS[i] for i in (0, 1, 4, 5, 2, 3, 2, 3)], strict=True))
MARKERS = dict(zip(TARGETS, "oDvPs^s^", strict=True))
SHOWN = 0.03, 3.0  # ratios that a plot has room for; others lie on its edge
TICKS = 0.03, 0.1, 0.3, 1, 3


def is_missed(found, name):
    """Whether a ratio is above its target by more than its standard error: a parameter's, if it has none."""
    return not found["ratio"] - found["standard_error"] <= TARGETS.get(name, OF_PARAMETERS)


def bold(text, condition):
    return f"**{text}**" if condition else text


def cell(record, name):
    if (found := record["results"].get(name)) is None:
        return ""
    return bold(f"{found['ratio']:.2f} ± {found['standard_error']:.2f}", is_missed(found, name))


def of_constant(record):
    return "exactly the bias" if record["exact"] else "**not the bias**"


def table(records):
    """A table for each operation."""
    by_operation = {}
    for record in records:
        by_operation.setdefault(record["operation"], []).append(record)
    made = "\n\n".join(map(table_of, list(by_operation.values()) or [[]]))
    return tables.explained(made, f"{WHAT} {WORDS}")


def table_of(records):
    """A row for each case and kind of data; a column for each result that a case has."""
    found = {name for record in records for name in record.get("results", ())}
    rows, names = [], [name for name in TARGETS if name in found or not found]
    for record in records:
        if record["data"] == CONSTANT:
            cells = [of_constant(record), *[""] * (len(names) - 1)]
        else:
            cells = [cell(record, name).replace(" ± ", "±") for name in names]
        rows.append((record["case"], record["on"], record["data"], *cells))
    return tables.text(("case", "kernels", "data", *names), rows, grouped=2)


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
    look = dict(fmt=MARKERS[name], color=COLORS[name], markersize=4, clip_on=False)
    panel.errorbar(places, ratios, (below, above), label=name, **look)


def panel_of(panel, case, drawn):
    """Draws a case: its results by data, and the targets as lines."""
    names = [name for name in TARGETS if name in drawn[0]["results"]]
    for place, name in enumerate(names):
        points(panel, drawn, name, 0.16 * (place - (len(names) - 1) / 2))
    panel.axhline(1, color="black", linewidth=0.8)
    for target, style, of in (
        (OF_ITS_SIZE, "--", "y and gradients of its size"),
        (OF_PARAMETERS, ":", "gradients of parameters"),
    ):
        look = dict(color="black", linewidth=1.2, linestyle=style)
        panel.axhline(target, label=f"target of {of}, {target}", **look)
    panel.set(title=case, yscale="log", ylim=SHOWN, xlim=(-0.5, len(DATA) - 0.5))
    panel.set_xticks(range(len(DATA)), DATA, rotation=90)


def finding(operation, records):
    """The title of a plot: the largest of the ratios that it draws."""
    ratios = [
        one["ratio"]
        for record in records
        for name, one in record.get("results", {}).items()
        if name in TARGETS
    ]
    exceeded = f"{max(ratios):.2f} times torch's own" if max(ratios) >= 1.005 else "torch's own"
    return f"{operation}: no error exceeds {exceeded}."


def notes(records):
    """Lines below a plot: what lies on its edge, and why 16 bits lack a kind of data."""
    lines = ["A point on an edge lies beyond it."]
    single = {record["data"] for record in records if " fp32 " in record["case"]}
    others = {record["data"] for record in records if " fp32 " not in record["case"]}
    if others and (lacking := single - others - {CONSTANT}):
        lines.append(f"{listed(lacking)}: not in 16 bits, which do not tell such numbers apart.")
    return "\n".join(lines)


def listed(kinds):
    return ", ".join(kind for kind in DATA if kind in kinds)


def plot(path, operation, records):
    """Plots ratios by data, a panel a case."""
    with pictures.styled():
        pictures.save(figure_of(operation, records), path)


def figure_of(operation, records):
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    cases = by_case(records)
    columns = min(2, len(cases))
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(pictures.WIDTH, 2 * rows + 2.4))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    legend = {}
    for panel, ((case, _), (drawn, _)) in zip(panels.flat, cases.items()):
        panel_of(panel, case.removeprefix(f"{operation} "), drawn)
        panel.yaxis.set_major_locator(FixedLocator(TICKS))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())
        handles, labels = panel.get_legend_handles_labels()
        legend |= zip(labels, handles)
    for panel in list(panels.flat)[len(cases) :]:
        panel.set_axis_off()
        panels[-2, -1].tick_params(labelbottom=True)  # the last of its column, with room below it
        for label in panels[-2, -1].get_xticklabels():
            label.set_in_layout(False)
    figure.supylabel("error over torch's, root mean square", fontsize=10)
    pictures.title(figure, finding(operation, records))
    named = sorted(legend, key=lambda label: label.startswith("target"))
    look = dict(loc="outside lower center", ncols=2, title=notes(records))
    figure.legend([legend[label] for label in named], named, **look)
    return figure


WHAT = (
    "Errors against float64 over those of torch's own operators, root mean square over elements and seeds: "
    "1 is as exact as torch. Rows, channels or groups hold normal numbers (randn), with an outlier of 50 or "
    "1e4 at their first, middle or any place, or with a mean of 10 or 1e6. Bold is above its target: "
    f"{OF_ITS_SIZE} for y and gradients of its size, {OF_PARAMETERS} for gradients of parameters."
)
WORDS = (
    "Behind ± is the ratio's standard error, found by leaving out one seed after the other; bold is in "
    f"asterisks. {CONSTANT}: whether all of one number gives exactly the norm's bias as y. kernels: a GPU's, "
    "compiled for one and executed on the CPU, or interpreted."
)
OF_16_BITS = "In 16 bits, where rounding the result is most of the error, the largest ratio is"

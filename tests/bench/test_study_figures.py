"""The figures of bench/study: what they say follows the results, and nothing in them is cut off or hidden."""

import math
from pathlib import Path

import pytest

for library in ("matplotlib", "scipy", "sklearn"):
    pytest.importorskip(library)

from made_up_results import MADE_UP, depth_results, interactions_results  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402
from PIL import Image  # noqa: E402

from bench.harness import pictures  # noqa: E402
from bench.study import NAMES, by_name, page  # noqa: E402
from bench.study.experiment import LARGEST_LOSS  # noqa: E402

FOLDER = Path(page.__file__).parent


def drawn(name, results):
    figure = page.figure(name, results)
    with pictures.styled():
        FigureCanvasAgg(figure).draw()
    return figure


@pytest.fixture(scope="module")
def figures():
    return {name: drawn(name, found["results"]) for name, found in page.load(FOLDER).items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_title_is_the_finding_and_follows_the_results(figures, name):
    titles = [drawn(name, MADE_UP[name](good))._suptitle.get_text() for good in (True, False)]
    assert titles[0] != titles[1]
    title = figures[name]._suptitle.get_text().replace("\n", " ")
    assert f"![{title.removesuffix('.')}]({name}.png)" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_cut_off(figures, name):
    figure = figures[name]
    box, sheet = figure.get_tightbbox(), figure.bbox_inches
    assert sheet.x0 <= box.x0 < box.x1 <= sheet.x1
    assert sheet.y0 <= box.y0 < box.y1 <= sheet.y1
    for panel in figure.axes:
        for line in panel.get_lines():
            if line.get_transform() == panel.transData:
                (left, right), (bottom, top) = sorted(panel.get_xlim()), sorted(panel.get_ylim())
                assert all(left < x < right for x in line.get_xdata())
                assert all(bottom < y < top for y in line.get_ydata())


@pytest.mark.parametrize("name", NAMES)
def test_curves_that_coincide_are_told_apart(figures, name):
    """Two curves of a panel differ in colour or marker, and their markers lie in different places."""
    for panel in figures[name].axes:
        lines = [line for line in panel.get_lines() if len(line.get_xdata()) > 2 and line.get_marker() != "_"]
        colors = {str(line.get_color()) for line in lines}
        markers = {(str(line.get_color()), line.get_marker()) for line in lines}
        places = {(line.get_marker(), str(line.get_markevery()), line.get_xdata()[0]) for line in lines}
        assert len(markers) == len(lines) or name == "fully_connected"
        assert len(places) == len(lines) or len(colors) == len(lines)


@pytest.mark.parametrize("name", NAMES)
def test_one_legend_collides_with_nothing(figures, name):
    figure = figures[name]
    legends = [*figure.legends, *filter(None, (panel.get_legend() for panel in figure.axes))]
    assert len(legends) == (name != "interactions")
    for legend in legends:
        for panel in figure.axes:
            assert not panel.axison or not legend.get_window_extent().overlaps(panel.get_tightbbox())


@pytest.mark.parametrize("name", NAMES)
def test_committed_pictures_are_wide_enough_and_opaque(figures, name):
    """Of few colours, but those of the curves are among them."""
    picture = Image.open(FOLDER / f"{name}.png")
    assert picture.width == 160 * pictures.WIDTH
    assert "transparency" not in picture.info
    colors = {color for _, color in picture.convert("RGB").getcolors(2**24)}
    lines = [line for panel in figures[name].axes for line in panel.get_lines() if line.get_alpha() is None]
    for line in lines:
        drawn = [255 * part for part in to_rgb(line.get_color())]
        assert min(math.dist(drawn, color) for color in colors) < 20


@pytest.mark.parametrize("diverged", [0, 1, 5])
def test_a_run_is_said_to_have_diverged_where_it_has(diverged):
    """A loss above that of guessing is none that diverged; the mean of some that did is not drawn."""
    results = depth_results(True)
    for number, result in enumerate(results.values()):
        result["BatchNorm, 1/n"]["loss"] = 0.45  # guessing has 0.36
        result["none, 3/n"]["loss"] = math.log10(LARGEST_LOSS) if number < diverged else 0.9
    (panel,) = [axes for axes in drawn("depth", results).axes if "diverged" in axes.get_title()]
    ticks = {label.get_text(): label.get_position()[1] for label in panel.get_yticklabels()}
    assert ("diverged" in ticks) == (diverged > 0)
    by_place = {
        round(line.get_xdata()[2]): line.get_ydata()
        for line in panel.get_lines()
        if len(line.get_xdata()) == 5
    }
    cells = [by_name("depth").key(*cell) for cell in by_name("depth").CELLS]
    assert by_place[cells.index("BatchNorm, 1/n")].tolist() == [10**0.45] * 5
    shown = by_place[cells.index("none, 3/n")].tolist()
    assert shown[diverged:] == [10**0.9] * (5 - diverged)
    if diverged:
        assert shown[:diverged] == [ticks["diverged"]] * diverged
        assert ticks["diverged"] > max(
            y for place in by_place for y in by_place[place] if y != ticks["diverged"]
        )
    means = [bar.get_segments()[0][0][0] for bar in panel.collections]
    assert len(means) == len(cells) - (0 < diverged < 5)


def test_the_colours_of_interactions_span_what_occurs():
    results = interactions_results(True)
    (image,), (bar,) = (
        [image for panel in drawn("interactions", results).axes for image in panel.get_images()],
        [axes for axes in drawn("interactions", results).axes if axes.get_label() == "<colorbar>"],
    )
    values = image.get_array()
    assert image.get_clim() == (values.min(), values.max())
    assert "test accuracy" in bar.get_ylabel()
    assert bar.get_yticks()[[0, -1]] == pytest.approx([values.min(), values.max()])

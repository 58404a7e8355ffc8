"""The page of the classes that `normreg.replace` knows."""

from collections import defaultdict

from bench.harness import tables
from normreg.models.registry import COUNTERPARTS, FORWARDS

TORCH = "torch.nn"
FEW = 3  # classes of a kind that need no list of their own
COLUMNS = '<div class="columns">'  # docs/static/pages.css sets the list beside itself


def _by_kind():
    """{library: {what a layer becomes: names of classes}}, in the order of registration."""
    found = defaultdict(lambda: defaultdict(list))
    for path, forward in FORWARDS.items():
        what = forward.__doc__.splitlines()[0].removesuffix(".")
        found[path.split(".")[0]][what].append(path.split(".")[-1])
    kinds = {library: {what: sorted(names) for what, names in of.items()} for library, of in found.items()}
    same = {"The class of the same name in `normreg`": sorted(cls.__name__ for cls in COUNTERPARTS)}
    return {TORCH: same, **kinds}


def _listed(names):
    return [COLUMNS, "", *(f"- `{name}`" for name in names), "", "</div>", ""]


def _of_library(library, kinds):
    """All classes of a library: a list for each kind that has many, one for those of the other kinds."""
    number = sum(map(len, kinds.values()))
    lines = [f"## {library}: {number} classes", ""]
    few = []
    for what, names in kinds.items():
        if len(names) > FEW:
            lines += [f"**{what}**, {len(names)} classes:", "", *_listed(names)]
        else:
            few += [(name, what) for name in names]
    if few:
        one_a_name = defaultdict(list)
        for name, what in sorted(few):
            one_a_name[name].append(what)
        lines += [f"- `{name}`: {'; or: '.join(whats)}" for name, whats in one_a_name.items()]
        lines += [""]
    return lines


def section(results=None):
    kinds = _by_kind()
    rows = [(library, what, len(names)) for library, of in kinds.items() for what, names in of.items()]
    lines = [tables.markdown(("library", "becomes", "classes"), rows), ""]
    for library, of in kinds.items():
        lines += _of_library(library, of)
    return "\n".join(lines)

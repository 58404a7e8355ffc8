"""README's section of the classes that `normreg.replace` knows."""

from collections import defaultdict

from bench.harness import tables
from normreg.models.registry import COUNTERPARTS, FORWARDS

BEGIN, END = "<!-- classes: written by python -m bench report -->", "<!-- end of classes -->"
SHOWN = 3  # classes of one forward in the table; all are listed below it


def _by_forward():
    """Names of classes in the order of registration: {(library, forward): names}."""
    names = defaultdict(list)
    for path, forward in FORWARDS.items():
        names[path.split(".")[0], forward].append(path.split(".")[-1])
    return {key: sorted(classes) for key, classes in names.items()}


def _what(forward):
    return forward.__doc__.splitlines()[0].removesuffix(".")


def section():
    known = ", ".join(f"`{cls.__name__}`" for cls in COUNTERPARTS)
    rows = [("torch.nn", len(COUNTERPARTS), known, "the classes of the same names in `normreg`")]
    lists = []
    for (library, forward), classes in _by_forward().items():
        more = len(classes) - SHOWN
        shown = ", ".join(f"`{name}`" for name in classes[:SHOWN]) + (f" and {more} more" if more > 0 else "")
        rows.append((library, len(classes), shown, _what(forward)))
        if more > 0:
            lists += [f"{library}: {_what(forward)}", ""]
            lists += [", ".join(f"`{name}`" for name in classes), ""]
    table = tables.markdown(("library", "classes", "names", "becomes"), rows)
    return "\n".join([table, "", "<details><summary>all names</summary>", "", *lists, "</details>", ""])

"""Runs the cells of code of a notebook, in a process without Jupyter, and prints their outputs as JSON."""

import ast
import contextlib
import io
import json
import sys
import types
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
# what a notebook shows a picture with
sys.modules["IPython.display"] = types.SimpleNamespace(Image=lambda path: Path(path).stat().st_size)


def run(source, namespace):
    """What a cell prints, and what it shows as text and as HTML."""
    tree = ast.parse(source)
    *_, last = tree.body
    shown = ast.Expression(tree.body.pop().value) if isinstance(last, ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "cell", "exec"), namespace)
        value = None if shown is None else eval(compile(shown, "cell", "eval"), namespace)
    html = value._repr_html_() if hasattr(value, "_repr_html_") else None
    return dict(printed=printed.getvalue(), text=None if value is None else repr(value), html=html)


cells = json.loads(Path(sys.argv[1]).read_text())["cells"]
namespace = {"__name__": "__main__"}
outputs = [run("".join(cell["source"]), namespace) for cell in cells if cell["cell_type"] == "code"]
json.dump(outputs, sys.stdout)

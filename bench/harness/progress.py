"""The progress bar, shown on a terminal where rich is installed."""

import contextlib
import itertools
import sys

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
except ModuleNotFoundError:  # as on a machine with a GPU that installs nothing
    Progress = None


@contextlib.contextmanager
def progress(total):
    """Shows a bar meanwhile; yields a function to call with a description as each step begins."""
    if Progress is None or not sys.stderr.isatty():
        yield lambda description: None
        return
    columns = ("{task.description}", BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, done = bar.add_task("", total=total), itertools.count()
        yield lambda description: bar.update(task, completed=next(done), description=description)

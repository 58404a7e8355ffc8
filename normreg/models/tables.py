"""Reports that print as tables: as text, and as HTML in a notebook."""

import html
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from typing import Any, NamedTuple

from normreg.models.naming import summary_of

WIDTH = 100  # of sentences, in characters


class Table(NamedTuple):
    """A heading and rows, which are dataclasses or tuples; the first cell of each is a name."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Any] = ()


def cells_of(row: Any) -> tuple[str, ...]:
    """The cells of a row."""
    return row if isinstance(row, tuple) else astuple(row)


def grouped(table: Table) -> Table:
    """The table with one row for those that differ in nothing but their names, where there are such."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, *others in map(cells_of, table.rows):
        groups.setdefault(tuple(others), []).append(name)
    if len(groups) == len(table.rows):
        return table
    name, *others = table.columns
    rows = [(str(len(names)), *cells, summary_of(names)) for cells, names in groups.items()]
    return Table(table.heading, ("count", *others, name), rows)


def text_of(table: Table) -> list[str]:
    """The lines of a table."""
    rows = [cells_of(row) for row in table.rows]
    if not rows:
        return [table.heading]
    widths = [max(map(len, column)) for column in zip(table.columns, *rows)]
    lines = [table.columns, ["-" * width for width in widths], *rows]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return [table.heading, *text]


def html_of(table: Table) -> str:
    """The table in HTML."""
    rows = [("th", table.columns), *(("td", cells_of(row)) for row in table.rows)] if table.rows else []
    lines = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) for tag, cells in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<p>{html.escape(table.heading)}</p>" + (f"<table>{body}</table>" if body else "")


class Tables:
    """The base of a report: it prints as its tables, of which empty ones are left out, and its sentences."""

    def tables(self) -> Iterable[Table]:
        """The tables; the first is printed without rows as well."""
        raise NotImplementedError

    def sentences(self) -> Iterable[str]:
        """What stands below the tables."""
        return ()

    def _shown(self) -> list[Table]:
        first, *others = self.tables()
        return [first, *(table for table in others if table.rows)]

    def __str__(self) -> str:
        paragraphs = ["\n".join(text_of(table)) for table in self._shown()]
        return "\n\n".join([*paragraphs, *(textwrap.fill(sentence, WIDTH) for sentence in self.sentences())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        sentences = (f"<p>{html.escape(sentence)}</p>" for sentence in self.sentences())
        return "".join([*map(html_of, self._shown()), *sentences])

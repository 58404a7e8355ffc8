"""Reports that print as tables: as text, and as HTML in a notebook."""

import html
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple
from types import MappingProxyType
from typing import Any, NamedTuple

from normreg.models.naming import summary_of, without_prefix

WIDTH = 100  # of all that is printed, in characters
INDENT = "  "  # of what wraps


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


_SPACES = re.compile(r"\s+")


class _Wrapper(textwrap.TextWrapper):
    """Breaks lines at spaces and, because names have none, behind dots and between their words."""

    wordsep_re = re.compile(r"(\s+|(?<=[a-z\])*][._,/])(?=[\w*])|(?<=[a-z])(?=[A-Z]))")


def _wrapped(cell: str, width: int, indent: str) -> list[str]:
    """The lines of a cell; those behind the first are indented where there is room.

    Names are broken only where one of them is wider than the column.
    """
    indent *= width > 2 * len(indent)
    whole = max(map(len, cell.split()), default=0) + len(indent) <= width
    wrapper = (textwrap.TextWrapper if whole else _Wrapper)(width, subsequent_indent=indent)
    wrapper.break_on_hyphens = not whole
    return wrapper.wrap(cell) or [""]


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int]) -> list[int]:
    """The widths of columns that fit WIDTH: the widest give way, first headers of numbers, words last."""
    room, places = WIDTH - 2 * (len(columns) - 1), range(len(columns))
    widest = [max([0, *(len(row[i]) for row in rows)]) for i in places]
    widths = [max(widest[i], len(columns[i])) for i in places]
    words = [max(widest[i], *map(len, columns[i].split())) if i in right else widths[i] for i in places]

    def whole(between: re.Pattern[str]) -> list[int]:
        """Widths at which columns of words wrap between what they consist of."""
        pieces = [
            max(len(piece) for row in (columns, *rows) for piece in between.split(row[i])) for i in places
        ]
        return [words[i] if i in right else pieces[i] + len(INDENT) for i in places]

    anywhere = [words[i] if i in right else 1 for i in places]
    for least in (words, whole(_SPACES), whole(_Wrapper.wordsep_re), anywhere):
        while sum(widths) > room and (wide := [i for i in places if widths[i] > least[i]]):
            widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def laid_out(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    above: Mapping[int, str] = MappingProxyType({}),
) -> list[str]:
    """The lines of a table, columns two spaces apart; the widest columns wrap until it is WIDTH wide.

    Args:
        right: columns of numbers, which are flush right and do not wrap; their headers do.
        above: lines that stand above some of the rows.
    """
    widths = _widths(columns, rows, right)
    sides = [str.rjust if i in right else str.ljust for i, _ in enumerate(columns)]

    def lines_of(row: Sequence[str], header: bool = False) -> list[str]:
        """The lines of a row; short cells of a header stand at its bottom."""
        indent = "" if header else INDENT
        cells = [_wrapped(cell, width, indent) for cell, width in zip(row, widths)]
        missing = [[""] * (max(map(len, cells)) - len(cell)) for cell in cells]
        lines = zip(*(less + cell if header else cell + less for cell, less in zip(cells, missing)))
        return ["  ".join(side(*cell) for side, *cell in zip(sides, line, widths)).rstrip() for line in lines]

    text = [*lines_of(columns, header=True), "  ".join("-" * width for width in widths)]
    for i, row in enumerate(rows):
        text += textwrap.wrap(above[i], WIDTH) if i in above else []
        text += lines_of(row)
    return text


def text_of(table: Table) -> list[str]:
    """The lines of a table; one that is too wide says only once how all names begin."""
    rows, heading = [cells_of(row) for row in table.rows], table.heading
    columns = zip(table.columns, *rows)
    if sum(max(map(len, cells)) + 2 for cells in columns) > WIDTH + 2 and table.columns[0] == "name":
        prefix, names = without_prefix([row[0] for row in rows])
        rows = [(name, *row[1:]) for name, row in zip(names, rows)]
        heading += f"; names begin with {prefix}" * bool(prefix)
    lines = textwrap.wrap(heading, WIDTH)
    return [*lines, *laid_out(table.columns, rows)] if rows else lines


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

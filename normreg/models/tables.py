"""Formats reports as plain-text tables."""

from collections.abc import Sequence, Sized
from dataclasses import astuple
from typing import Any

ROOT = "(the model itself)"

Section = tuple[str, Sequence[str], Sequence[Any]]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows = [rows[0], tuple("-" * width for width in widths), *rows[1:]]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def sections(*tables: Section) -> list[str]:
    """The lines of tables of dataclasses, (heading, header, rows) each; the first even without rows."""
    lines: list[str] = []
    for position, (heading, header, rows) in enumerate(tables):
        if rows or position == 0:
            lines += ["", heading, *(table([header, *map(astuple, rows)]) if rows else [])]
    return lines[1:]


def counted(rows: Sized, what: str = "layer") -> str:
    """The number of rows with the noun in its singular or plural."""
    return f"{len(rows)} {what}{'' if len(rows) == 1 else 's'}"


def percentage(part: int, whole: int) -> str:
    """A share in three digits."""
    return f"{100 * part / whole:.3g} %"


def class_name(cls: type) -> str:
    """The name of a class behind that of its library."""
    library = "torch.nn" if cls.__module__.startswith("torch.nn.") else cls.__module__.split(".")[0]
    return f"{library}.{cls.__name__}"

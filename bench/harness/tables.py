"""Tables in markdown, for pages, and as text of 100 columns, for terminals.

Own code, because they are written on machines with nothing installed beside torch, and no table of rich's
marks the columns that are flush right.
"""

import textwrap

WIDTH = 100  # of what is printed, in characters


def _parts(headers, rows):
    """(headers, cells of the rows, whether each column has numbers alone); headers as in `markdown`."""
    headers = headers.split(" | ") if isinstance(headers, str) else [*headers]
    cells = [[str(cell) for cell in row] for row in rows]
    columns = [*zip(*cells)] or [()] * len(headers)
    firsts = [[cell.lstrip("*")[:1] for cell in column] for column in columns]
    return headers, cells, [all(first.isdigit() or first in "+-" for first in column) for column in firsts]


def text(headers, rows, grouped=0):
    """A table of at most 100 columns, in which wide cells wrap.

    The first `grouped` cells of a row stand on a line of their own, above all rows that share them.
    """
    from normreg.models.tables import laid_out  # here: it is interpreted or compiled as set when imported

    headers, cells, numeric = _parts(headers, rows)
    shared = [", ".join(row[:grouped]) for row in cells]
    above = {i: line for i, line in enumerate(shared) if grouped and shared[i - 1 : i] != [line]}
    right = [i for i, is_number in enumerate(numeric[grouped:]) if is_number]
    indent = "  " * (grouped > 0)
    below = [(indent + row[grouped], *row[grouped + 1 :]) for row in cells]
    return "\n".join(laid_out(headers[grouped:], below, right=right, above=above))


def explained(table, words):
    """A table with an explanation of its words below it."""
    return f"{table}\n\n{textwrap.fill(words, WIDTH, break_on_hyphens=False)}"


def markdown(headers, rows):
    """An aligned markdown table; columns of numbers, bold or not, are flush right.

    headers: a sequence, or one line with " | " between them.
    """
    headers, cells, numeric = _parts(headers, rows)
    cells = [headers, *cells]
    widths = [max(3, *map(len, column)) for column in zip(*cells)]

    def line(row):
        return (
            "| "
            + " | ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(row, widths, numeric)
            )
            + " |"
        )

    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric)]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])

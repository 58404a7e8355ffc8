"""Tables that read well in a terminal and are markdown.

Own code, because they are written on machines with nothing installed beside torch, and no table of rich's
marks the columns that are flush right.
"""


def markdown(headers, rows):
    """An aligned markdown table; columns of numbers, bold or not, are flush right.

    headers: a sequence, or one line with " | " between them.
    """
    headers = headers.split(" | ") if isinstance(headers, str) else headers
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    columns = list(zip(*cells))
    widths = [max(3, *map(len, column)) for column in columns]
    firsts = [[cell.lstrip("*")[:1] for cell in column[1:]] for column in columns]
    numeric = [all(first.isdigit() or first in "+-" for first in column) for column in firsts]

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

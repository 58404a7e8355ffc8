"""Tables that read the same in a terminal and in markdown."""


def markdown(headers, rows):
    """An aligned markdown table; a column is flush right where all its cells are numbers."""
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    columns = list(zip(*cells))
    widths = [max(3, *map(len, column)) for column in columns]
    numeric = [all(cell[:1].isdigit() or cell[:1] in "+-" for cell in column[1:]) for column in columns]

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

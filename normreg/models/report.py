"""What `replace`, `restore` and `explain` report, and how it is printed."""

import textwrap
from dataclasses import astuple, dataclass

ROOT = "(the model itself)"


@dataclass(frozen=True)
class Change:
    name: str
    was: str
    now: str


@dataclass(frozen=True)
class Skip:
    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Fusion:
    name: str  # of the module whose forward applies them
    what: str  # "bn1 -> relu"


@dataclass(frozen=True)
class Report:
    """What `replace` or `restore` did, or would do: printed, a table each of what there is.

    `changed` and `skipped` are layers; `fused` and `not_fused`, the latter with the reason, are patterns;
    `parameters` are numbers of elements, in the layers that are changed and in all; `notes` are sentences.
    """

    changed: tuple[Change, ...]
    skipped: tuple[Skip, ...]
    dry_run: bool = False  # nothing was changed
    fused: tuple[Fusion, ...] = ()
    not_fused: tuple[Skip, ...] = ()
    parameters: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()

    def __str__(self):
        would_be = "would be " * self.dry_run
        inside, total = self.parameters
        share = (
            f", with {percentage(inside, total)} of {total:,} parameters" if self.changed and total else ""
        )
        now = "would be" if self.dry_run else "is"
        lines = sections(
            (f"{counted(self.changed)} {would_be}changed{share}", ("name", "was", now), self.changed),
            (f"{counted(self.fused, 'pattern')} {would_be}fused", ("in", "what"), self.fused),
            (f"{len(self.not_fused)} not fused", ("in", "what", "why"), self.not_fused),
            (f"{counted(self.skipped)} left alone", ("name", "class", "why"), self.skipped),
        )
        return "\n".join([*lines, *("\n" + textwrap.fill(note, 100) for note in self.notes)])


def percentage(part, whole):
    return f"{100 * part / whole:.3g} %"


def counted(rows, what="layer"):
    return f"{len(rows)} {what}{'' if len(rows) == 1 else 's'}"


def sections(first, *others):
    """Lines of tables of dataclasses: (heading, header, rows) each, of the others those that have rows."""
    lines = []
    for heading, header, rows in (first, *(other for other in others if other[-1])):
        lines += ["", heading, *(table([header, *map(astuple, rows)]) if rows else [])]
    return lines[1:]


def table(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows = [rows[0], tuple("-" * width for width in widths), *rows[1:]]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def class_name(cls):
    library = "torch.nn" if cls.__module__.startswith("torch.nn.") else cls.__module__.split(".")[0]
    return f"{library}.{cls.__name__}"

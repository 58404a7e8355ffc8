"""What `replace`, `restore` and `explain` report, and how it is printed."""

import textwrap
from dataclasses import dataclass

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
        rows = [(change.name, change.was, change.now) for change in self.changed]
        inside, total = self.parameters
        share = f", with {percentage(inside, total)} of {total:,} parameters" if rows and total else ""
        lines = [f"{counted(rows)} {would_be}changed{share}"]
        if rows:
            lines += table([("name", "was", "would be" if self.dry_run else "is"), *rows])
        if self.fused:
            lines += ["", f"{counted(self.fused, 'pattern')} {would_be}fused"]
            lines += table([("in", "what"), *((f.name, f.what) for f in self.fused)])
        if self.not_fused:
            lines += ["", f"{len(self.not_fused)} not fused"]
            lines += table([("in", "what", "why"), *((s.name, s.kind, s.reason) for s in self.not_fused)])
        if self.skipped:
            lines += ["", f"{counted(self.skipped)} left alone"]
            lines += table([("name", "class", "why"), *((s.name, s.kind, s.reason) for s in self.skipped)])
        return "\n".join([*lines, *("\n" + textwrap.fill(note, 100) for note in self.notes)])


def percentage(part, whole):
    return f"{100 * part / whole:.3g} %"


def counted(rows, what="layer"):
    return f"{len(rows)} {what}{'' if len(rows) == 1 else 's'}"


def table(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows = [rows[0], tuple("-" * width for width in widths), *rows[1:]]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def class_name(cls):
    library = "torch.nn" if cls.__module__.startswith("torch.nn.") else cls.__module__.split(".")[0]
    return f"{library}.{cls.__name__}"

"""What `replace` and `restore` report."""

import textwrap
from dataclasses import dataclass

from normreg.models.tables import counted, percentage, sections


@dataclass(frozen=True)
class Change:
    """A layer whose class changed."""

    name: str
    was: str
    now: str


@dataclass(frozen=True)
class Skip:
    """A layer or pattern that was left alone."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Fusion:
    """A pattern that one call computes."""

    name: str  # of the module whose forward applies it
    what: str  # "bn1 -> relu"


@dataclass(frozen=True)
class Report:
    """What `replace` or `restore` did, or would do. Printed, it is a table for each kind of entry.

    Attributes:
        changed: layers whose class changed.
        skipped: layers that were left alone, with the reason.
        dry_run: whether nothing was changed.
        fused: patterns that one call computes now.
        not_fused: patterns that were left alone, with the reason.
        parameters: numbers of elements in the layers that changed and in the model.
        notes: sentences on what a caller would not expect.
    """

    changed: tuple[Change, ...]
    skipped: tuple[Skip, ...]
    dry_run: bool = False
    fused: tuple[Fusion, ...] = ()
    not_fused: tuple[Skip, ...] = ()
    parameters: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
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

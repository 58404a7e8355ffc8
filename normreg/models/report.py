"""What `replace` and `restore` report."""

from collections.abc import Iterable
from dataclasses import dataclass

from normreg.models.naming import counted, percentage
from normreg.models.tables import Table, Tables, grouped


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


@dataclass(frozen=True, repr=False)
class Report(Tables):
    """What `replace` or `restore` did, or would do. Printed, it is a table for each kind of entry.

    Attributes:
        changed: layers whose class changed.
        skipped: layers that were left alone, with the reason.
        dry_run: whether nothing was changed.
        fused: patterns that one call computes now.
        not_fused: patterns that were left alone, with the reason.
        parameters: numbers of elements in the layers that changed and in the model.
        notes: sentences on what a caller would not expect.
        already: how many layers were normreg's before.
        verbose: whether each entry has a line of its own; else those that differ in nothing but their
            names share one, in which * stands for numbers.
    """

    changed: tuple[Change, ...]
    skipped: tuple[Skip, ...]
    dry_run: bool = False
    fused: tuple[Fusion, ...] = ()
    not_fused: tuple[Skip, ...] = ()
    parameters: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()
    already: int = 0
    verbose: bool = False

    def tables(self) -> Iterable[Table]:
        would_be = "would be " * self.dry_run
        inside, total = self.parameters
        heading = f"{counted(self.changed)} {would_be}changed"
        if self.changed and total:
            heading += f", with {percentage(inside, total)} of {total:,} parameters"
        if self.already:
            heading += f"; {self.already} {'is' if self.already == 1 else 'are'} normreg's already"
        now = "would be" if self.dry_run else "is"
        patterns = counted(self.fused, "pattern"), counted(self.not_fused, "pattern")
        tables = (
            Table(heading, ("name", "was", now), self.changed),
            Table(f"{patterns[0]} {would_be}fused", ("in", "what"), self.fused),
            Table(f"{patterns[1]} not fused", ("in", "what", "why"), self.not_fused),
            Table(f"{counted(self.skipped)} left alone", ("name", "class", "why"), self.skipped),
        )
        return tables if self.verbose else map(grouped, tables)

    def sentences(self) -> Iterable[str]:
        return self.notes

"""Names and numbers in reports and errors."""

import itertools
import re
from collections.abc import Iterable, Sequence, Sized
from typing import Any

ROOT = "(the model itself)"
SHOWN = 56  # characters of names in one line, at most, beyond the first
NUMBER = re.compile(r"(\d+)")


def path_of(thing: Any) -> str:
    """The import path of a class or function."""
    return f"{thing.__module__}.{thing.__qualname__}"


def counted(rows: Sized, what: str = "layer") -> str:
    """The number of rows with the noun in its singular or plural."""
    return f"{len(rows)} {what}{'' if len(rows) == 1 else 's'}"


def percentage(part: int, whole: int) -> str:
    """A share in three digits."""
    return f"{100 * part / whole:.3g} %"


def patterns_of(names: Iterable[str]) -> list[str]:
    """Names with * where some of them differ in nothing but numbers."""
    alike: dict[tuple[str, ...], list[list[str]]] = {}
    for name in names:
        words = NUMBER.split(name)  # numbers at the odd places
        alike.setdefault(tuple(words[::2]), []).append(words)
    columns = (zip(*group) for group in alike.values())
    return ["".join(words[0] if len({*words}) == 1 else "*" for words in group) for group in columns]


def without_prefix(names: Sequence[str]) -> tuple[str, list[str]]:
    """The prefix that several names share, such as "model.layers.", and what is left of each name."""
    around = zip(*(name.split(".")[:-1] for name in names)) if len(names) > 1 else ()
    shared = itertools.takewhile(lambda words: len({*words}) == 1, around)
    prefix = "".join(f"{word}." for word, *_ in shared)
    return prefix, [name[len(prefix) :] for name in names]


def summary_of(names: Iterable[str]) -> str:
    """Names in one line: all of them or, where these are too long, as many of their patterns as it takes."""
    names = [*names]
    if len(line := ", ".join(names)) <= SHOWN:
        return line
    line, *others = patterns_of(names)
    while others and len(line) + len(others[0]) <= SHOWN:
        line += f", {others.pop(0)}"
    return line + (f" and {len(others)} more" if others else "")

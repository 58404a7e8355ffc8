"""Patches in the folder of the file that they change: lines of text, then a unified diff of that one file.

A line of the text is `Tests: ` and what pytest is to run in tests/: files, tests or, with -k, an expression.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


class BrokenPatch(ValueError):
    pass


@dataclass(frozen=True)
class Patch:
    path: Path
    file: str  # that it changes, from the root
    tests: tuple[str, ...]  # words of pytest's command line, in tests/
    hunks: tuple[tuple[str, str], ...]  # lines, and what they become

    def applied(self, source):
        for was, now in self.hunks:
            places = [found.start() for found in re.finditer(f"^(?={re.escape(was)})", source, re.MULTILINE)]
            if len(places) != 1:
                raise BrokenPatch(
                    f"{self.path}: expected in {self.file} once, found {len(places)} times:\n{was}"
                    f"To make it anew: plant the bug in {self.file}, put what `git diff {self.file}` prints "
                    "under the text of the patch, and take the bug away again"
                )
            source = source[: places[0]] + now + source[places[0] + len(was) :]
        return source

    @property
    def arguments(self):
        """Arguments of a pytest that runs in the root."""
        return [
            word if word.startswith("-") or before == "-k" else f"tests/{word}"
            for before, word in zip(("", *self.tests), self.tests)
        ]

    @property
    def test_files(self):
        return sorted(
            {ROOT / word.partition("::")[0] for word in self.arguments if word.startswith("tests/")}
        )


def read(path):
    """The patch in a file; raises BrokenPatch where it is not one."""
    text, found, diff = path.read_text().partition("\n--- a/")
    tests = re.findall(r"^Tests: (.+)$", text, re.MULTILINE)
    changed, *hunks = re.split(r"^@@.*\n", diff, flags=re.MULTILINE)
    file, _, again = changed.removesuffix("\n").partition("\n+++ b/")
    if not found or len(tests) != 1 or not hunks or file != again or "\n--- a/" in diff:
        raise BrokenPatch(
            f"{path}: expected a line `Tests: ...`, then a diff of one file, got\n{path.read_text()}"
        )
    place = FOLDER / file.removesuffix(".py")
    if path.parent != place:
        raise BrokenPatch(f"{path}: expected patches of {file} in {place}: move it there")
    return Patch(path, file, tuple(shlex.split(tests[0])), tuple(map(_both_sides, hunks)))


def _both_sides(hunk):
    lines = [line if line.strip("\n") else f" {line}" for line in hunk.splitlines(keepends=True)]
    was = "".join(line[1:] for line in lines if line[0] in " -")
    now = "".join(line[1:] for line in lines if line[0] in " +")
    return was, now

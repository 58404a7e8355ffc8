"""What the pages link to exists: files, and headings as a forge makes anchors of them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/**/*.md")])
FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2`*$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
# the target of [text](target), which may be an image in another link, of [text]: target, and of HTML
LINK = re.compile(r'\]\(\s*<?([^)\s>]+)|^\[[^\]]+\]:\s*(\S+)|\b(?:src|href)="([^"]+)"', re.MULTILINE)
ANCHOR = re.compile(r'\bid="([^"]+)"|^\(([\w.-]+)\)=$', re.MULTILINE)


def prose(page):
    return FENCE.sub("", page.read_text())


def links(page):
    """Targets in this repository."""
    targets = ("".join(groups) for groups in LINK.findall(CODE.sub("", prose(page))))
    return [target for target in targets if not re.match(r"\w+:", target)]


def anchors(page):
    """What stands behind # in a link to a part of a page."""
    found = {"".join(groups) for groups in ANCHOR.findall(prose(page))}
    for heading in re.findall(r"^#+ +(.*?) *#*$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text).lower().replace(" ", "-")
        found.add(next(name for n in range(99) if (name := f"{slug}-{n}" if n else slug) not in found))
    return found


def broken(page):
    """Links of a page to files or headings that are not there."""
    missing = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and (target.suffix != ".md" or anchor not in anchors(target))):
            missing.append(link)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    assert broken(page) == []


def test_links_are_found():
    assert sum(len(links(page)) for page in PAGES) > 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](other.md) [b](other.md#two-words-1) [c](#here) <a href='https://x.y/z'>", []),
        ("[a](missing.md)", ["missing.md"]),
        ("[a](other.md#three)", ["other.md#three"]),
        ("[a](#there)", ["#there"]),
        ("[![a](missing.png)](other.md)", ["missing.png"]),
        ('<img src="missing.png">', ["missing.png"]),
        ("[a]: missing.md", ["missing.md"]),
        ("`x[0](1)` [a](https://x.y/z)\n```\n[a](missing.md)\n```\n[b](gone.md)", ["gone.md"]),
    ],
)
def test_broken_links_are_seen(tmp_path, text, expected):
    (tmp_path / "other.md").write_text("# Two `words`\n## Two words\n")
    (tmp_path / "page.md").write_text(f"{text}\n\n# Here!\n")
    assert broken(tmp_path / "page.md") == expected

"""README and docs with nothing between their marks."""

from bench import report


def write(root, text="old\n"):
    """Writes the pages that report fills, below a folder."""
    for name, (page, _) in report.BLOCKS.items():
        begin, end = report.marks(name)
        (root / page).parent.mkdir(parents=True, exist_ok=True)
        (root / page).write_text(f"# Title\n{begin}\n{text}{end}\nrest\n")

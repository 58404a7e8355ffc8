"""README and docs with nothing between their marks."""

from bench import report


def write(root, text="old\n"):
    """Writes the pages that report fills, below a folder."""
    for page in {page for page, _ in report.BLOCKS.values()}:
        own = [report.marks(name) for name, (of, _) in report.BLOCKS.items() if of == page]
        blocks = "".join(f"{begin}\n{text}{end}\n" for begin, end in own)
        (root / page).parent.mkdir(parents=True, exist_ok=True)
        (root / page).write_text(f"# Title\n{blocks}rest\n")

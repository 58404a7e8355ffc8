"""Each block of Python in README and docs runs alone, and prints what stands below it."""

import ast
import importlib.util
import re
from pathlib import Path

import programs
import pytest
from support import hub

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python( slow)?\n(.*?)^```\n(?:```\n(.*?)^```)?", re.DOTALL | re.MULTILINE)
# a page, and its blocks: whether it is slow, the code, and what the block right below says it prints
PAGES = {
    str(page.relative_to(ROOT)): blocks
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if (blocks := BLOCK.findall(page.read_text()))
}

# what torch and transformers import of others, by the word that stands for it
ASKED_FOR = {"torch.onnx": "onnxscript", "TrainingArguments": "accelerate"}


def can_run(code):
    """Whether the packages that an example imports are installed."""
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {getattr(node, "module", None) or alias.name for node in imports for alias in node.names}
    packages = {name.partition(".")[0] for name in names}
    packages |= {package for word, package in ASKED_FOR.items() if word in code}
    if "kernels" in packages and hub.spec() is None:
        return False
    return all(importlib.util.find_spec(name) for name in packages)


def without_places(text):
    """Addresses differ from run to run, and Triton's versions count lines and columns in their own ways."""
    return re.sub(r"0x[0-9a-f]+|example\.py:\d+:\d+", "somewhere", text)


WIDTH = 99  # columns of a line of code: a page shows 88 without scrolling


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_examples_fit_a_page(page):
    lines = [line for _, code, _ in PAGES[page] for line in code.splitlines()]
    assert [line for line in lines if len(line) > WIDTH] == []


@pytest.mark.parametrize("page", PAGES)
def test_each_example_stands_alone(tmp_path, page, thorough):
    """What is marked as slow, by a word behind `python`, runs with --all."""
    blocks = [(code, shown) for slow, code, shown in PAGES[page] if (thorough or not slow) and can_run(code)]
    if not blocks:
        pytest.skip("what the page's examples import is not installed, or they are slow")
    files = [tmp_path / str(number) / "example.py" for number, _ in enumerate(blocks)]
    for file, (code, _) in zip(files, blocks):
        file.parent.mkdir()
        file.write_text(code)
    log = programs.interpreted("examples", tmp_path / "log", *files)
    printed = re.split(r"^--- \d+\n", log, flags=re.MULTILINE)[1:]
    for (_, shown), output in zip(blocks, printed, strict=True):
        if shown:
            assert without_places(output) == without_places(shown)


def test_what_examples_print_is_compared():
    for page in ("README.md", "docs/quickstart.md", "docs/fusion.md", "docs/without_a_gpu.md"):
        assert any(shown for _, _, shown in PAGES[page]), page


@pytest.mark.parametrize("found", [True, False])
def test_an_example_that_fails_is_seen(tmp_path, found):
    example = tmp_path / "example.py"
    example.write_text("pass" if found else "raise ValueError")
    assert (programs.exit_status("examples", tmp_path / "log", example) == 0) == found


def test_badges_are_those_of_the_package():
    """README's badges say what pyproject.toml says."""
    readme, package = (ROOT / "README.md").read_text(), (ROOT / "pyproject.toml").read_text()
    (torch, triton) = re.search(r'"torch>=([\d.]+)", "triton>=([\d.]+)', package).groups()
    (python,) = re.search(r'requires-python = ">=([\d.]+)"', package).groups()
    assert f"![torch {torch} or newer](" in readme
    assert f"![Triton {triton} or newer](" in readme
    assert f"![Python {python} to 3.13](" in readme
    assert "MIT License" in (ROOT / "LICENSE").read_text()

"""README's examples that import what they need run, and print what stands below them."""

import importlib.util
import re
from pathlib import Path

import programs
import pytest
from support import hub

ROOT = Path(__file__).parents[2]
# an example, and the block that follows it at once, if any
EXAMPLES = re.findall(r"```python\n(.*?)```\n(?:```\n(.*?)```)?", (ROOT / "README.md").read_text(), re.DOTALL)
PACKAGES = "transformers", "onnx", "accelerate", "lightning", "peft", "timm"


def can_run(code):
    """Whether the packages that an example needs are installed."""
    others = all(word not in code or importlib.util.find_spec(word) for word in PACKAGES)
    return others and ("from kernels import" not in code or hub.spec() is not None)


def test_examples(tmp_path):
    assert sum(bool(output) for _, output in EXAMPLES) >= 2
    chosen = [(code, output) for code, output in EXAMPLES if code.startswith("import ") and can_run(code)]
    files = [tmp_path / f"{number}.py" for number, _ in enumerate(chosen)]
    for file, (code, _) in zip(files, chosen):
        file.write_text(code)
    log = programs.interpreted("examples", tmp_path / "log", *files)
    printed = re.split(r"^--- \d+\n", log, flags=re.MULTILINE)[1:]
    for (_, expected), output in zip(chosen, printed, strict=True):
        if expected:
            assert output == expected


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_each_example_of_a_page_stands_alone(tmp_path, page, thorough):
    """What is marked as slow, by a word behind `python`, runs with --all."""
    files = []
    for number, (slow, code) in enumerate(
        re.findall(r"```python( slow)?\n(.*?)```", page.read_text(), re.DOTALL)
    ):
        if can_run(code) and (thorough or not slow):
            files.append(tmp_path / f"{number}.py")
            files[-1].write_text(code)
    assert files
    programs.interpreted("examples", tmp_path / "log", "--alone", *files)


def test_the_labs_example(tmp_path):
    """The example runs in a new process, from a file, because Triton reads a kernel's source there."""
    ((code, expected),) = [example for example in EXAMPLES if example[0].startswith("from bench import lab")]
    (tmp_path / "example.py").write_text(code)
    printed = programs.compiling(tmp_path / "example", TRITON_CACHE_DIR=str(tmp_path / "cache")).stdout
    address = re.compile(r"0x[0-9a-f]+")
    assert address.sub("there", printed) == address.sub("there", expected)


@pytest.mark.parametrize("found", [True, False])
def test_an_example_that_fails_is_seen(tmp_path, found):
    example = tmp_path / "example.py"
    example.write_text("pass" if found else "raise ValueError")
    assert (programs.exit_status("examples", tmp_path / "log", example) == 0) == found

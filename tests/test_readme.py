"""README's examples that import what they need run, and print what stands below them."""

import importlib.util
import re
from pathlib import Path

import pytest
from processes import exit_status

ROOT = Path(__file__).parent.parent
# an example, and the block that follows it at once, if any
EXAMPLES = re.findall(r"```python\n(.*?)```\n(?:```\n(.*?)```)?", (ROOT / "README.md").read_text(), re.DOTALL)
# on a CPU, as a user would who is not in this folder
BEFORE = """
import os
os.environ.pop("TRITON_INTERPRET", None)
import sys
sys.modules["kernels"] = None
"""


def test_examples(tmp_path):
    assert sum(bool(output) for _, output in EXAMPLES) >= 2
    chosen = [
        (code, output)
        for code, output in EXAMPLES
        if code.startswith("import ")
        and ("transformers" not in code or importlib.util.find_spec("transformers"))
    ]
    source = BEFORE
    for number, (code, _) in enumerate(chosen):
        source += f"print('--- {number}')\nexec({code!r}, globals())\n"
    log = tmp_path / "log"
    assert exit_status(source, ROOT, log) == 0, log.read_text()
    printed = re.split(r"^--- \d+\n", log.read_text(), flags=re.MULTILINE)[1:]
    for (_, expected), output in zip(chosen, printed, strict=True):
        if expected:
            assert output == expected


@pytest.mark.parametrize("found", [True, False])
def test_an_example_that_fails_is_seen(tmp_path, found):
    log = tmp_path / "log"
    source = BEFORE + f"exec({'pass' if found else 'raise ValueError'!r}, globals())"
    assert (exit_status(source, ROOT, log) == 0) == found

"""The help of every command: each is listed, and options say what they take by default."""

import argparse
import os
import sys
from pathlib import Path

import pytest

from bench import __main__

for library in ("matplotlib", "rich", "scipy", "sklearn"):
    pytest.importorskip(library)

BENCH = Path(__main__.__file__).parent
PARTS = {**__main__.PARTS, **__main__.OTHERS}


@pytest.fixture
def helped(monkeypatch, capsys):
    """What `python -m bench ...` prints that ends with status 0."""
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", ""))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("RANK", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["python -m bench", *arguments])
        with pytest.raises(SystemExit) as end:
            __main__.main()
        assert end.value.code == 0
        return capsys.readouterr().out

    return run


def commands():
    """The names of all commands by their files: `__main__`s, and modules that parse a part's arguments."""
    for path in BENCH.rglob("*.py"):
        text, (name, *_) = path.read_text(), path.relative_to(BENCH).with_suffix("").parts
        if name == "perf":
            name = path.relative_to(BENCH / "perf").with_suffix("").parts[0]
        if "\ndef add_arguments(" in text or '\nif __name__ == "__main__"' in text:
            yield name.removeprefix("__main__")


def test_every_command_is_listed(helped):
    listed = helped("--help")
    found = {{"gpu_pass": "gpu"}.get(name, name) for name in commands()} - {""}
    assert found == {*PARTS, *__main__.COMMANDS}
    for name in found:
        assert f"\n    {name} " in listed


@pytest.mark.parametrize("name", [*PARTS, *__main__.COMMANDS])
def test_every_option_says_what_it_takes_and_what_without_it(helped, monkeypatch, name):
    actions, add = [], argparse.ArgumentParser._add_action

    def noted(parser, action):
        actions.append(action)
        return add(parser, action)

    monkeypatch.setattr(argparse.ArgumentParser, "_add_action", noted)
    printed = helped(name, "--help")
    assert name in printed.splitlines()[0]
    assert max(map(len, printed.splitlines())) <= 100
    for action in actions:
        takes = action.nargs != 0 and action.option_strings
        assert action.help or isinstance(action, argparse._SubParsersAction), action
        assert not takes or action.required or "default" in action.help, action.option_strings
        assert not takes or action.metavar or action.choices, action.option_strings


def test_a_parts_name_in_another_place_is_no_part(monkeypatch):
    """Kernels would be interpreted that are to be compiled, if smoke were imported."""
    loaded = []
    stand_in = argparse.Namespace(add_arguments=lambda parser: None)
    monkeypatch.setattr(__main__, "load", lambda name: loaded.append(name) or stand_in)
    monkeypatch.setattr(sys, "argv", ["python -m bench", "ledger", "--out", "smoke"])
    assert __main__.parse_arguments().out == Path("smoke")
    assert loaded == ["ledger"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ranks"], "expected torchrun to start it, which tells each process its rank: torchrun"),
        (["--json", "study"], "expected no option before study, which has its own: python -m bench study"),
    ],
)
def test_what_is_refused(monkeypatch, capsys, arguments, message):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["python -m bench", *arguments])
    with pytest.raises(SystemExit, match="2"):
        __main__.main()
    assert message in capsys.readouterr().err

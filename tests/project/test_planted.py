"""Proof that the tests can fail: each bug in `planted/` turns a test red that is green without it."""

import dataclasses
import re

import pytest
from planted import notes, patches, running
from planted.patches import BrokenPatch
from planted.running import NotFound

PATCHES = sorted(patches.FOLDER.rglob("*.patch"))
# of every run of the tests
FEW = (
    "kernels/batch_norm/tile/dx-of-a-tile-loses-the-mean-of-dy",
    "kernels/dropout/elements/the-tail-is-not-masked",
    "kernels/layer_norm/tile/dbias-keeps-only-the-last-tile",
)
DROPOUT = patches.FOLDER / f"{FEW[1]}.patch"


def name(path):
    return str(path.relative_to(patches.FOLDER).with_suffix(""))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    checkout = running.Checkout(tmp_path_factory.mktemp("planted"))
    yield checkout
    checkout.end()


@pytest.mark.planted
@pytest.mark.slow
@pytest.mark.parametrize("path", PATCHES, ids=name)
def test_a_planted_bug_is_found(request, path):
    # no process begins where all have been found before
    notes.find(patches.read(path), lambda patch: request.getfixturevalue("checkout").find(patch))


@pytest.mark.parametrize("bug", FEW)
def test_a_bug_of_some_kernels_is_found(checkout, bug):
    assert checkout.find(patches.read(patches.FOLDER / f"{bug}.patch"))


def test_every_patch_can_be_planted():
    for path in PATCHES:
        patch = patches.read(path)
        source = (patches.ROOT / patch.file).read_text()
        assert patch.applied(source) != source, path


def functions(file):
    """Names of tests in a file."""
    return set(re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE))


def test_every_test_named_exists():
    for path in PATCHES:
        patch = patches.read(path)
        for word in patch.tests:
            if "::" in word:
                file, test = word.split("::")
                assert test.partition("[")[0] in functions(patches.ROOT / "tests" / file), path
        for file in patch.test_files:
            assert file.exists(), path


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a patch of kernels/dropout.py from a text and hunks of a diff."""
    monkeypatch.setattr(patches, "FOLDER", tmp_path)
    folder = tmp_path / "kernels" / "dropout"
    folder.mkdir(parents=True)

    def write(hunks, text="Tests: test_dropout.py -k 'a and b'", file="kernels/dropout.py"):
        (folder / "a-bug.patch").write_text(f"{text}\n--- a/{file}\n+++ b/{file}\n{hunks}")
        return folder / "a-bug.patch"

    return write


def test_a_patch(written):
    text = (
        "What is planted.\n\nTests: test_dropout.py -k 'a and b' test_fuse.py::test_c\n\ndiff --git a/x b/x"
    )
    patch = patches.read(written("@@ -1,3 +1,3 @@ def f():\n a\n-b\n+c\n\n@@ -9 +9,2 @@\n d\n+e\n", text))
    assert patch.tests == ("test_dropout.py", "-k", "a and b", "test_fuse.py::test_c")
    assert patch.arguments == ["tests/test_dropout.py", "-k", "a and b", "tests/test_fuse.py::test_c"]
    assert [file.name for file in patch.test_files] == ["test_dropout.py", "test_fuse.py"]
    assert patch.applied("0\na\nb\n\n1\nd\n2\n") == "0\na\nc\n\n1\nd\ne\n2\n"


@pytest.mark.parametrize(
    "source", ["a\nx\n\nd\n", "a\nb\n\nd\na\nb\n\n", "xa\nb\n\nd\n"], ids=["gone", "twice", "longer"]
)
def test_a_patch_that_does_not_fit(written, source):
    patch = patches.read(written("@@ -1,3 +1,3 @@\n a\n-b\n+c\n \n@@ -9 +9,2 @@\n d\n+e\n"))
    with pytest.raises(
        BrokenPatch, match=r"(?s)in kernels/dropout.py once, found .*git diff kernels/dropout.py"
    ):
        patch.applied(source)


@pytest.mark.parametrize(
    ("hunks", "change"),
    [
        ("", {}),
        ("@@ -1 +1 @@\n-a\n+b\n", dict(text="No tests.")),
        ("@@ -1 +1 @@\n-a\n+b\n", dict(text="Tests: a.py\nTests: b.py")),
        ("@@ -1 +1 @@\n-a\n+b\n", dict(file="kernels/device/random.py")),
        ("@@ -1 +1 @@\n-a\n+b\n--- a/kernels/launch.py\n+++ b/kernels/launch.py\n@@ -1 +1 @@\n-a\n+b\n", {}),
    ],
    ids=["no hunk", "no tests", "tests twice", "another folder", "two files"],
)
def test_what_is_no_patch(written, hunks, change):
    with pytest.raises(BrokenPatch, match="expected"):
        patches.read(written(hunks, **change))


def changed(patch, **changes):
    return dataclasses.replace(patch, **changes)


MODULE = "kernels/dropout/__init__.py"  # which imports torch
COMMENT = (("import torch\n", "import torch  # no bug\n"),)
NO_IMPORT = (("import torch\n", "import torchh\n"),)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(hunks=COMMENT, file=MODULE), "expected a test to fail, got OK"),
        (dict(tests=("kernels/test_dropout.py", "-k", "no_such_test")), "got NO_TESTS_COLLECTED"),
        (dict(tests=("kernels/test_dropout.py::test_no_such",)), "got USAGE_ERROR"),
        (dict(hunks=NO_IMPORT, file=MODULE), "(?s)got (USAGE|INTERNAL)_ERROR.*torchh"),
        (dict(hunks=NO_IMPORT, file="tests/kernels/test_dropout.py"), "got INTERRUPTED"),
    ],
    ids=["no bug", "nothing selected", "no test", "no import", "no import of a test"],
)
def test_what_finds_no_bug(checkout, changes, told):
    patch = changed(patches.read(DROPOUT), tests=("kernels/test_dropout.py", "-k", "inf_and_nan"))
    with pytest.raises(NotFound, match=told):
        checkout.find(changed(patch, **changes))
    assert (checkout.root / MODULE).read_text() == (patches.ROOT / MODULE).read_text()


@pytest.fixture
def another_test(checkout):
    """Writes a file of tests into the copy, and returns its name."""
    file = checkout.root / "tests/test_another.py"

    def write(text):
        file.write_text(text)
        return file.name

    yield write
    file.unlink()


def test_what_fails_without_the_bug_is_no_proof(checkout, another_test):
    red = another_test("import normreg\ndef test_red(): assert normreg is None\n")
    with pytest.raises(NotFound, match="test_red to pass without the bug"):
        checkout.find(changed(patches.read(DROPOUT), tests=(red,)))


def test_what_is_skipped_is_no_proof(checkout, another_test):
    skipped = another_test("import pytest\n@pytest.mark.skip\ndef test_skipped(): pass\n")
    assert not checkout.find(changed(patches.read(DROPOUT), tests=(skipped,)))


def test_kernels_run_by_what_they_do_here(checkout, another_test):
    another_test(
        f"from normreg.kernels import cpu\ndef test_kernels(): assert cpu.KERNELS == '{running.kernels()}'\n"
    )
    for server in (checkout.with_bugs, checkout.without):
        outcome = server.run(["tests/test_another.py"])
        assert (outcome.status, outcome.passed) == (0, 1), outcome.log


def test_a_process_that_ends_by_a_signal(checkout, another_test):
    killed = another_test(
        "import os, signal\n"
        "from normreg.kernels import dropout\n"
        "def test_killed():\n"
        "    if hasattr(dropout, 'bug'): os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    hunks = (("import torch\n", "import torch\nbug = 1\n"),)
    bug = changed(patches.read(DROPOUT), file=MODULE, hunks=hunks, tests=(killed,))
    assert checkout.find(bug)

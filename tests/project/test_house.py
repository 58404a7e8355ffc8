"""The rules of the house: lengths, words and layout of the project's files."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST = 300  # lines of a file
TABLES = {"tests/operations.py"}  # which may be longer
MOST_SKIPS = 20  # "fmt: skip" in the project
MOST_PARAMETERS = 15  # of a jit function
EQUAL_LINES = 10  # that are too many to stand in two places


def texts():
    """{path from the root: text} of the project's Python files."""
    found = {}
    for room in ("kernels", "normreg", "bench", "tests"):
        for path in (ROOT / room).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith("normreg/kernels/"):  # where Python follows the link
                found[name] = path.read_text()
    return found


TEXTS = texts()
TREES = {name: ast.parse(text) for name, text in TEXTS.items()}
LIBRARY = [name for name in TEXTS if name.startswith(("kernels/", "normreg/"))]


def test_files_are_short():
    lengths = {name: len(text.splitlines()) for name, text in TEXTS.items() if name not in TABLES}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_few_lines_are_kept_from_the_formatter():
    skips = {name: text.count("  # fmt: skip\n") for name, text in TEXTS.items()}
    assert sum(skips.values()) <= MOST_SKIPS, {name: number for name, number in skips.items() if number}


def docstrings(tree):
    """(line, docstring) of everything that has one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0].lineno, text


def test_docstrings_name_their_subject_first():
    fragments = [
        f"{name}:{line}"
        for name, tree in TREES.items()
        for line, text in docstrings(tree)
        if text.startswith("Of ")
    ]
    assert fragments == []


def names_called(tree):
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_no_module_rewrites_its_globals():
    assert [name for name in LIBRARY if "globals" in names_called(TREES[name])] == []


def assigned(tree):
    """Every target of an assignment, as it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            yield from map(ast.unparse, node.targets)
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            yield ast.unparse(node.target)


def test_calls_of_modules_are_observed_in_one_place():
    """Not by another Module.__call__, which other tools may put there as well."""
    targets = [target for name in LIBRARY for target in assigned(TREES[name])]
    assert not [target for target in targets if target.endswith("Module.__call__")]
    places = [name for name in LIBRARY if "register_module_forward_hook" in TEXTS[name]]
    assert places == ["normreg/inspection/observer.py"]


def test_one_variable_says_whether_kernels_are_interpreted():
    places = [name for name in LIBRARY for target in assigned(TREES[name]) if target == "INTERPRET"]
    assert len(places) == 1, places


def imports_torch(tree):
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return any(name.partition(".")[0] == "torch" for name in names)


def test_device_code_imports_no_torch():
    device = [name for name in TEXTS if name.startswith("kernels/device/")]
    assert len(device) > 2
    assert [name for name in device if imports_torch(TREES[name])] == []


def test_the_root_of_the_package_holds_folders():
    entries = {path.name: path.is_dir() for path in (ROOT / "normreg").iterdir()}
    assert {name for name, is_folder in entries.items() if not is_folder} == {"__init__.py", "py.typed"}
    assert (ROOT / "normreg/kernels").resolve() == ROOT / "kernels"


def jit_functions(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            decorators = {ast.unparse(decorator).partition("(")[0] for decorator in node.decorator_list}
            if decorators & {"triton.jit", "jit"}:
                yield node.name, len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)


def test_jit_functions_have_few_parameters():
    counts = {f"{name}: {f}": n for name in LIBRARY for f, n in jit_functions(TREES[name])}
    assert len(counts) > 20
    assert {f: n for f, n in counts.items() if n > MOST_PARAMETERS} == {}


def code_lines(text):
    """(line number, stripped line) without blank lines, imports, exports, docstrings and lists of parameters.

    What one launch or one call chooses between takes the same parameters, a line each.
    """
    tree = ast.parse(text)
    left_out = set()
    for node in ast.walk(tree):
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        exports = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if isinstance(node, ast.Import | ast.ImportFrom) or is_docstring or exports:
            left_out |= {*range(node.lineno, node.end_lineno + 1)}
        if isinstance(node, ast.FunctionDef):
            left_out |= {*range(node.lineno + 1, node.body[0].lineno)}
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in lines if line and number not in left_out]


def repeated(files):
    """Places, as `file:line`, from which EQUAL_LINES lines of {name: text} stand elsewhere, too."""
    windows = defaultdict(list)
    for name, text in files.items():
        lines = code_lines(text)
        for start in range(len(lines) - EQUAL_LINES + 1):
            window = tuple(line for _, line in lines[start : start + EQUAL_LINES])
            windows[window].append(f"{name}:{lines[start][0]}")
    return [places for places in windows.values() if len(places) > 1]


def test_no_ten_lines_stand_in_two_places():
    found = repeated({name: TEXTS[name] for name in LIBRARY})
    assert not found, "\n".join(map(" and ".join, found))


@pytest.mark.parametrize(("equal", "found"), [(EQUAL_LINES - 1, 0), (EQUAL_LINES, 1), (EQUAL_LINES + 1, 2)])
def test_equal_lines_are_seen(equal, found):
    lines = [f"x{i} = {i}" for i in range(equal)]
    one = "import ast\n" + "\n".join([*lines, "last = 1"])
    other = '"""A docstring."""\nfirst = 1\n' + "\n\n".join(lines)
    assert len(repeated({"one": one, "other": other})) == found


def test_parameters_of_jit_functions_are_counted():
    decorated = "@triton.jit\ndef a(x, y, *, z): ...\n@triton.jit(do_not_specialize=['x'])\ndef b(x): ..."
    assert dict(jit_functions(ast.parse(f"{decorated}\ndef c(x): ..."))) == {"a": 3, "b": 1}

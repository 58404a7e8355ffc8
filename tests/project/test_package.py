import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import normreg
from normreg.kernels import launch

ROOT = Path(__file__).resolve().parents[2]

# rooms from the ground up: each imports only from those before it
ORDER = (
    "kernels",
    "ops",
    "export",
    "distributed",
    "functional",
    "nn",
    "models",
    "hub",
    "training",
    "inspection",
)

OPTIONAL = {"normreg.inspection.diagnosis": {"matplotlib"}}  # imported by the function that needs it
# modules that a function imports, and what they import for it
ON_DEMAND = {
    "normreg.export.onnx_nodes": {"onnx_ir", "onnxscript"},
    "normreg.export.onnx_values": {"numpy", "onnx_ir"},
}


def top_level_roots(tree):
    """Top-level packages that a module imports when it is imported itself."""
    body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return {name.split(".")[0] for name in imports("", ast.Module(body, []))}


def installed_files():
    """{module name: file}, where packages end in `.__init__`."""
    files = {}
    for path in [*(ROOT / "kernels").rglob("*.py"), *(ROOT / "normreg").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[:2] != ("normreg", "kernels"):  # where the symlink is followed
            files[".".join(["normreg", *parts] if parts[0] == "kernels" else parts)] = path
    return files


FILES = installed_files()
SOURCES = {name.removesuffix(".__init__"): ast.parse(path.read_text(), path) for name, path in FILES.items()}
KERNELS = sorted(name for name in SOURCES if name.startswith("normreg.kernels"))
PACKAGES = {name.removesuffix(".__init__") for name in FILES if name.endswith(".__init__")}


def imports(name, tree):
    """Full dotted names of what a module imports, each name of a `from` import by itself."""
    package = name.split(".") if name in PACKAGES else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room(name):
    """`ops` of normreg.ops.layer_norm; the empty string of normreg itself."""
    return [*name.split("."), ""][1]


def our_imports(name):
    return {imported for imported in imports(name, SOURCES[name]) if imported.split(".")[0] == "normreg"}


def called(tree, matches):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and matches(node)]


def loads(tree):
    return called(tree, lambda call: ast.unparse(call.func) == "tl.load")


def unguarded_loads(tree):
    """Lines of the masked loads whose masked elements are undefined."""
    return [
        call.lineno
        for call in loads(tree)
        if (len(call.args) > 1 or any(k.arg == "mask" for k in call.keywords))
        and not (len(call.args) > 2 or any(k.arg == "other" for k in call.keywords))
    ]


def launches(tree):
    """Lines of every `kernel[grid](...)`."""
    return [call.lineno for call in called(tree, lambda call: isinstance(call.func, ast.Subscript))]


def test_the_sources_are_found():
    assert {room(name) for name in SOURCES} == {*ORDER, ""}
    assert {"normreg.kernels.layer_norm", "normreg.kernels.batch_norm", "normreg.kernels.dropout"} <= {
        *KERNELS
    }


def test_kernels_cannot_be_imported_from_the_root(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    message = "import this folder as normreg.kernels: `pip install -e .` maps it there"
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        importlib.import_module("kernels")
    assert "kernels" not in sys.modules


def test_kernels_have_one_identity():
    assert sys.modules["normreg.kernels.launch"] is launch
    assert Path(launch.__file__).resolve() == ROOT / "kernels" / "launch.py"


def test_all_is_what_is_exported():
    imported = [
        alias.name
        for node in SOURCES["normreg"].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    reexported = [name for name in imported if name not in ("*", "nn")] + normreg.nn.__all__
    assert sorted(normreg.__all__) == sorted(reexported)
    star = {}
    exec("from normreg import *", star)
    assert star.keys() - {"__builtins__"} == set(reexported)
    public = {name for name in vars(normreg) if not name.startswith("_")}
    rooms = {room(name) for name in SOURCES}
    assert public - rooms == set(reexported) - rooms


def test_no_module_has_the_name_of_a_function():
    """The attribute `normreg.functional.dropout`, for one, is a function, whatever was imported before."""
    for package in ("normreg.functional", "normreg.nn", "normreg"):
        modules = {name.removeprefix(f"{package}.") for name in SOURCES if name.startswith(f"{package}.")}
        exported = set(importlib.import_module(package).__all__) - {"functional", "hub"}
        assert modules & exported == {*()}, package


def test_functional_is_reexports_alone():
    docstring, *body = SOURCES["normreg.functional"].body
    assert isinstance(docstring, ast.Expr)
    *imported, assigned = body
    assert all(isinstance(node, ast.ImportFrom) for node in imported)
    assert ast.unparse(assigned.targets[0]) == "__all__"


@pytest.mark.parametrize("name", ["functional", "hub", "init", "nn"])
def test_public_modules_are_imported_by_path_as_well(name):
    assert importlib.import_module(f"normreg.{name}") is getattr(normreg, name)


@pytest.mark.parametrize("name", ["normreg.nn", "normreg.functional"])
def test_every_name_of_all_exists(name):
    module = importlib.import_module(name)
    assert module.__all__ == sorted(set(module.__all__))
    assert all(callable(getattr(module, exported)) for exported in module.__all__)


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if room(name) in ORDER))
def test_imports_point_one_way(name):
    here = room(name)
    allowed = {here, *ORDER[: ORDER.index(here)]}
    assert {room(imported) for imported in our_imports(name)} <= allowed


def test_dispatch_is_read_by_what_chooses_and_watched_by_explain():
    readers = {
        name
        for name in SOURCES
        if any(imported.startswith("normreg.functional.dispatch") for imported in our_imports(name))
    }
    outside = {name for name in readers if room(name) != "functional"}
    assert outside == {"normreg.inspection.explain"}
    assert {room(imported) for imported in our_imports("normreg.functional.dispatch")} == {"kernels", "ops"}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_nothing_else_is_needed(name):
    """Users install torch and triton only; kernels know neither autograd nor modules."""
    roots = {imported.split(".")[0] for imported in imports(name, SOURCES[name])}
    if name in OPTIONAL:
        roots -= OPTIONAL[name] - top_level_roots(SOURCES[name])
    roots -= ON_DEMAND.get(name, set())
    assert roots - {"torch", "triton", "normreg"} <= set(sys.stdlib_module_names)
    if name in KERNELS:
        used = {ast.unparse(node) for node in ast.walk(SOURCES[name]) if isinstance(node, ast.Attribute)}
        used |= set(imports(name, SOURCES[name]))
        assert not {u for u in used if re.match(r"torch\.(nn|autograd)\b", u)}


def test_what_is_imported_on_demand_is_not_before():
    code = f"import sys, normreg; print(sorted(sys.modules.keys() & {[*ON_DEMAND]!r}))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("tl.load(p, mask=m)", True),
        ("tl.load(p, m)", True),
        ("tl.load(p, m, 0.0)", False),
        ("tl.load(p, mask=m, other=0.0)", False),
        ("tl.load(p)", False),
    ],
)
def test_an_unguarded_load_is_seen(line, found):
    assert unguarded_loads(ast.parse(line)) == [1] * found


@pytest.mark.parametrize("name", KERNELS)
def test_masked_loads_have_other(name):
    assert unguarded_loads(SOURCES[name]) == []


def test_loads_are_found():
    assert sum(len(loads(SOURCES[name])) for name in KERNELS) > 20


def test_every_launch_goes_through_launch():
    found = {name: launches(tree) for name, tree in SOURCES.items()}
    (line,) = found.pop("normreg.kernels.launch")
    names = [
        node.name
        for node in ast.walk(SOURCES["normreg.kernels.launch"])
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.lineno <= line <= node.end_lineno
    ]
    assert names == ["Launch", "first"]
    assert {name for name, lines in found.items() if lines} == {"normreg.kernels.twins"}  # which records


def pyproject():
    return pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())


def test_version():
    """setuptools reads it without importing torch, so it has to be a literal."""
    (value,) = (
        node.value.value
        for node in SOURCES["normreg"].body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    )
    assert normreg.__version__ == value
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev|\.post)\d+)?", value)
    project = pyproject()
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "normreg.__version__"}
    installed = {distribution.version for distribution in importlib.metadata.distributions(name="normreg")}
    assert installed <= {value}
    assert f"\nversion: {value}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"\b{re.escape(value)}\b", (ROOT / "CHANGELOG.md").read_text())


def test_every_package_is_listed():
    """Setuptools' discovery does not find them, so a folder that is forgotten is not installed."""
    setuptools = pyproject()["tool"]["setuptools"]
    assert set(setuptools["packages"]) == PACKAGES
    assert setuptools["package-dir"] == {"normreg.kernels": "kernels"}


def named_tests(text):
    return set(re.findall(r"`(test_\w+)`", text))


def test_pages_name_tests_that_exist():
    named = {
        test
        for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
        for test in named_tests(page.read_text())
    }
    assert len(named) > 20
    defined = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert named - defined == set()

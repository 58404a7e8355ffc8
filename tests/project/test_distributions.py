"""The wheel and the source distribution, built without a network and tried where no checkout is."""

import email
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytest.importorskip("build", reason="building needs build and setuptools: pip install --group test")
# neither imported nor looked for: before Python 3.12 both hide setuptools' distutils from all that follows
if "pip" not in {distribution.name for distribution in importlib.metadata.distributions()}:
    pytest.skip("installing a wheel needs pip", allow_module_level=True)

ROOT = Path(__file__).parents[2]
# what setuptools adds to a source distribution
ADDED = {"PKG-INFO", "setup.cfg", "normreg.egg-info"}
A_LAYER_RUNS = """
import importlib.metadata, importlib.util, torch, normreg, normreg.hub
from normreg.kernels import launch

assert importlib.util.find_spec("kernels") is None
assert launch.INTERPRET
x = torch.randn(4, 8, requires_grad=True)
y = normreg.LayerNorm(8)(x)
torch.testing.assert_close(y, torch.nn.LayerNorm(8)(x))
y.square().sum().backward()
(backend,) = importlib.metadata.entry_points(group="torch_dynamo_backends", name="normreg")
assert callable(backend.load())
normreg.hub.write("copy", backends=["cpu"])
print(normreg.__file__)
"""


def tracked():
    """Paths of the files that git has or would take, or of all where there is no git."""
    if not (ROOT / ".git").exists():
        left_out = {"__pycache__", ".venv", "build", ".pytest_cache", *ADDED}
        paths = [path for path in ROOT.rglob("*") if path.is_file() or path.is_symlink()]
        paths = [path.relative_to(ROOT) for path in paths]
        return [path for path in paths if left_out.isdisjoint(path.parts)]
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(listing, cwd=ROOT, text=True).split("\0")
    return [Path(name) for name in names if name and os.path.lexists(ROOT / name)]


def copied(folder):
    """A copy of the checkout, as it is cloned."""
    for path in tracked():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path, follow_symlinks=False)
    return folder


def build(source, out, *kinds):
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, *kinds, source]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out.parent)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("distributions")
    build(copied(folder / "checkout"), folder / "dist")
    return folder / "dist"


def the(built, pattern):
    (path,) = built.glob(pattern)
    return path


def contents(wheel):
    """Names of the files of a wheel, without its metadata."""
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def package():
    """Names of the files that a wheel is to have."""
    sources = {path for path in tracked() if path.suffix == ".py"}
    kernels = {Path("normreg") / path for path in sources if path.parts[0] == "kernels"}
    rest = {path for path in sources if path.parts[0] == "normreg" and path.parts[1] != "kernels"}
    return {path.as_posix() for path in kernels | rest} | {"normreg/py.typed"}


def test_the_wheel_has_the_package_and_nothing_else(built):
    assert len(package()) > 100
    assert contents(the(built, "*.whl")) == package()


@pytest.mark.parametrize(
    ("right", "wrong", "file"),
    [
        ('"normreg.kernels.tiling", ', "", "normreg/kernels/tiling/rows.py"),
        ('"normreg.training",', '"normreg.training", "bench",', "bench/__main__.py"),
    ],
)
def test_a_wheel_with_other_files_is_seen(tmp_path, right, wrong, file):
    settings = copied(tmp_path / "checkout") / "pyproject.toml"
    assert right in settings.read_text()
    settings.write_text(settings.read_text().replace(right, wrong))
    build(tmp_path / "checkout", tmp_path / "dist", "--wheel")
    assert file in contents(the(tmp_path / "dist", "*.whl")) ^ package()


def test_the_wheels_metadata(built):
    wheel = zipfile.ZipFile(the(built, "*.whl"))
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Author"] == "The normreg authors"
    assert metadata.get_all("Provides-Extra") == ["hub", "interpreter", "onnx", "plot"]
    assert wheel.read(name.replace("METADATA", "licenses/LICENSE")) == (ROOT / "LICENSE").read_bytes()
    python = "Programming Language :: Python :: "
    versions = [c.removeprefix(python) for c in metadata.get_all("Classifier") if c.startswith(python)]
    assert f">={versions[1]}" == metadata["Requires-Python"]  # behind "3 :: Only"


def needed(*names):
    """Distributions of these names, and those that they need here."""
    found, left = {}, [*map(Requirement, names)]
    while left:
        requirement = left.pop()
        for extra in {"", *requirement.extras}:
            if (requirement.name, extra) not in found:
                distribution = importlib.metadata.distribution(requirement.name)
                found[requirement.name, extra] = distribution
                others = map(Requirement, distribution.requires or [])
                left += [r for r in others if r.marker is None or r.marker.evaluate({"extra": extra})]
    return found.values()


@pytest.fixture(scope="module")
def clean(built, tmp_path_factory):
    """Python of an environment with torch, Triton and numpy, links to those here, and the wheel."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars=dict(base=folder, platbase=folder)))
    for distribution in needed("torch", "triton", "numpy"):
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(distribution.locate_file(top))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"]
    subprocess.run([*pip, the(built, "*.whl")], check=True)  # which finds what the wheel needs
    return python


def run(python, *arguments, cwd, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    environment |= {"NORMREG_CPU_KERNELS": "interpreter", "CUDA_VISIBLE_DEVICES": ""}
    command = [python, *arguments]
    done = subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_works_in_a_clean_environment(clean, tmp_path):
    printed = run(clean, "-W", "error", "-c", A_LAYER_RUNS, cwd=tmp_path)
    assert Path(printed.strip()).is_relative_to(clean.parents[1])


def unpacked(built, folder):
    """The one folder of the source distribution, read as pip does."""
    with tarfile.open(the(built, "*.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
    return the(folder, "*")


def test_the_source_distribution_has_what_git_has(built, tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("needs a checkout, to compare with")
    root = unpacked(built, tmp_path)
    paths = [path for path in root.rglob("*") if path.is_symlink() or path.is_file()]
    names = {path.relative_to(root) for path in paths}
    assert {name for name in names if name.parts[0] not in ADDED} == {*tracked()}
    assert os.readlink(root / "normreg/kernels") == "../kernels"
    assert os.access(root / ".ci/run", os.X_OK)


def test_tests_run_from_the_source_distribution(built, clean, tmp_path):
    """Some that read all sources, and some that run layers: those beside them, not the installed ones."""
    files = ["project/test_package.py", "contract/test_error_messages.py"]
    options = ["-q", "-p", "no:cacheprovider", *(f"tests/{file}" for file in files)]
    here = sysconfig.get_path("purelib")  # without what its .pth files do: no editable install
    run(clean, "-m", "pytest", *options, cwd=unpacked(built, tmp_path), PYTHONPATH=here)

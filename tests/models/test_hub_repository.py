"""`normreg.hub.write`: what is written, and what `kernels` loads of it beside this package."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from support import hub
from torch import nn

import normreg
from normreg.hub import __main__ as program
from normreg.hub import versions

pytestmark = pytest.mark.skipif(hub.spec() is None, reason="Hugging Face's kernels is not installed")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return normreg.hub.write(tmp_path_factory.mktemp("hub"), "beside_normreg", ["cpu", "cuda"])


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.randn(64)), 1e-6

    def forward(self, hidden_states):
        raise AssertionError("kernelize left the layer as it was")


def test_two_copies_compute_beside_this_package(device, folder, tmp_path):
    again = normreg.hub.write(tmp_path)
    layers = [Norm().to(device)]
    layers += [Norm().to(device) for _ in range(2)]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    x, dy = (torch.randn(5, 64, device=device) for _ in range(2))
    results = []
    with hub.decorated_as("RMSNorm", Norm):
        for layer, repository in zip(layers, (None, folder, again)):
            hub.kernelized(layer, compiled=True, repository=repository)
            for call in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
                y = call(x)
                results.append([y, *torch.autograd.grad(y, [layer.weight], dy)])
    for result in results[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(result, results[0], strict=True))
    homes = [layer.forward.__func__.__module__.partition(".")[0] for layer in layers]
    assert homes[:2] == ["normreg", f"_beside_normreg_{backend_of(device)}"]
    assert len({*homes}) == 3
    own = {sys.modules[f"{home}.ops.rms_norm"].rms_norm.operator for home in homes}
    assert {operator.namespace for operator in own} == {*homes}


def backend_of(device):
    return "cpu" if device.type == "cpu" else "rocm" if torch.version.hip else "cuda"


def test_a_copy_needs_torch_and_triton_alone(folder):
    """And carries the licence."""
    assert (folder / "build" / "torch-cuda" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    files = [*(folder / "build" / "torch-cuda").rglob("*.py")]
    assert len(files) > 50
    roots = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                roots.add(node.module.partition(".")[0])
    assert roots - {"torch", "triton"} <= set(sys.stdlib_module_names)


def test_the_digest_is_that_of_the_files(folder):
    with hub.hugging_faces_kernels() as kernels:
        for backend in ("cpu", "cuda"):
            copy = folder / "build" / f"torch-{backend}"
            written = kernels.Metadata.read_from_file(copy / "metadata.json")
            written.digest.validate(type(written.digest).hash_variant(written.digest.algorithm, copy))
            assert written.id == f"_beside_normreg_{backend}"
            assert written.python_depends == []


def test_another_torch_is_named(monkeypatch, tmp_path):
    folder = normreg.hub.write(tmp_path)
    with hub.hugging_faces_kernels() as kernels:
        repository = kernels.LocalLayerRepository(folder, layer_name="RMSNorm")
        for package, version in ((torch, "2.9.1"), (sys.modules["triton"], "3.5.0")):
            with monkeypatch.context() as patch:
                patch.setattr(package, "__version__", version)
                name = package.__name__
                with pytest.raises(ImportError, match=rf"expected {name} .* got {name} {version}: upgrade"):
                    repository.load()
        assert issubclass(repository.load(), nn.Module)


def test_the_versions_are_those_of_the_project():
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [dependency.partition(";")[0] for dependency in project["dependencies"]]
    assert needed == [f"torch>={versions.TORCH}", f"triton>={versions.TRITON}"]


def test_the_program_writes_what_it_is_told(monkeypatch, capsys, tmp_path):
    normreg.hub.write(tmp_path, backends=["cpu"])
    (tmp_path / "build" / "torch-cpu" / "of_before.py").touch()
    arguments = ["--out", tmp_path, "--namespace", "mine", "--backends", "cpu"]
    monkeypatch.setattr(sys, "argv", ["hub", *map(str, arguments)])
    program.main()
    assert capsys.readouterr().out == f"{tmp_path}\n"
    assert '"id": "_mine_cpu"' in (tmp_path / "build" / "torch-cpu" / "metadata.json").read_text()
    assert not (tmp_path / "build" / "torch-cpu" / "of_before.py").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(namespace="my-layers"), "expected a namespace of letters, .* got 'my-layers': pass a name"),
        (dict(backends=["tpu"]), "expected backends of cuda, rocm, cpu, got 'tpu': leave it out"),
        (dict(backends="cpu"), r"expected a sequence of backends, got 'cpu': pass \['cpu'\]"),
    ],
)
def test_what_cannot_be_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        normreg.hub.write(tmp_path, **options)
    assert not [*tmp_path.iterdir()]


def test_what_somebody_else_wrote_stays(tmp_path):
    other = tmp_path / "build" / "torch-rocm" / "notes.txt"
    other.parent.mkdir(parents=True)
    other.touch()
    with pytest.raises(ValueError, match=r"^expected a folder to write to, .*torch-rocm, of other files"):
        normreg.hub.write(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [other]


def test_without_hugging_faces_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "kernels", None)
    with pytest.raises(ImportError, match=r"^expected Hugging Face's package kernels, got: .*: pip install"):
        normreg.hub.mapping()

"""`write`: a copy of the layers, and of all that they need, as a repository that `kernels` loads.

Imports of this package become relative ones, so that a copy is one under any name. `kernels` imports it under
the `id` of its metadata, and its operators have the name of their package as their namespace.
"""

import ast
import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from normreg.hub import layers, versions

PACKAGE = __name__.partition(".")[0]
MOVED = {
    layers.__name__: "layers",
    versions.__name__: "versions",
}  # where `kernels` looks for them, or beside it
BACKENDS = "cuda", "rocm", "cpu"
INIT = '''"""normreg's layers for Hugging Face's `kernels`, with all that they need but torch and Triton."""

from . import versions

versions.check()

from . import layers  # noqa: E402

__all__ = ["layers"]
'''


def source_of(module: str) -> Path | None:
    """The file of a module of this package, or None for another name, such as a function's."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # what it should be in is no package
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


def imports(module: str, is_package: bool, tree: ast.AST) -> Iterator[str]:
    """Full names of what a module may import of this package."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            home = ".".join([*above, *([node.module] if node.module else [])])
            if home.partition(".")[0] == PACKAGE:
                yield home
                yield from (f"{home}.{alias.name}" for alias in node.names)


def needed(roots: Sequence[str]) -> dict[str, Path]:
    """{module: file} of the modules, and of all that these import, with the packages that they are in."""
    found: dict[str, Path] = {}
    waiting = [*roots]
    while waiting:
        module = waiting.pop()
        file = None if module in found or module == PACKAGE else source_of(module)
        if file is not None:
            found[module] = file
            waiting += imports(module, file.name == "__init__.py", ast.parse(file.read_text()))
            if module not in MOVED:
                waiting.append(module.rpartition(".")[0])
    return found


def relative(text: str, depth: int) -> str:
    """The source of a module so many packages below the root, with relative imports of this package."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module is not None:
            first, _, rest = node.module.partition(".")
            if first == PACKAGE:
                line, dots = lines[node.lineno - 1], "." * (depth + 1)
                lines[node.lineno - 1] = line.replace(f"from {node.module} ", f"from {dots}{rest} ", 1)
    return "".join(lines)


def licence() -> str:
    """The text that a copy has to carry: of what is installed, or of the checkout."""
    for distribution in importlib.metadata.distributions(name=PACKAGE):
        for file in distribution.files or ():
            if file.name == "LICENSE":
                return Path(str(file.locate())).read_text()
    return Path(__file__).parents[2].joinpath("LICENSE").read_text()


def contents() -> dict[str, str]:
    """{path: text} of the files of a copy."""
    texts = {"__init__.py": INIT, "LICENSE": licence()}
    for module, file in needed([*MOVED]).items():
        parts = MOVED.get(module, module.removeprefix(f"{PACKAGE}.")).split(".")
        is_package = file.name == "__init__.py"
        path = Path(*parts, "__init__.py") if is_package else Path(*parts).with_suffix(".py")
        texts[path.as_posix()] = relative(file.read_text(), len(path.parts) - 1)
    return dict(sorted(texts.items()))


def sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def metadata(texts: dict[str, str], name: str, backend: str) -> str:
    """What `kernels` reads of a copy, as JSON."""
    files = {path: base64.b64encode(sha256(text)).decode() for path, text in texts.items()}
    written = {
        "name": PACKAGE,
        "id": name,
        "version": 0,  # which stands for one that may still change
        "license": "mit",
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": files},
    }
    return json.dumps(written, indent=2) + "\n"


def is_of_before(copy: Path) -> bool:
    """Whether `write` has written this copy."""
    file = copy / "metadata.json"
    return file.is_file() and f'"name": "{PACKAGE}"' in file.read_text()


def write(
    folder: str | os.PathLike[str], namespace: str | None = None, backends: Sequence[str] = BACKENDS
) -> Path:
    """Writes a repository of `kernels` with normreg's layers, which needs torch and Triton and nothing else.

    Args:
        folder: where; a copy that was written there before is replaced, files that were put into it, too.
        namespace: of its operators, `torch.ops._<namespace>_<backend>`, by which copies in one process are
            told apart; None for one that follows from the contents.
        backends: of "cuda", "rocm" and "cpu", for each of which there is a copy in build/torch-<backend>.

    Returns the folder's full path, which `LocalLayerRepository`, `LOCAL_KERNELS` and transformers'
    `KernelConfig` take. It works beside an installed normreg, and where none is installed; where torch is
    older than 2.11, or Triton than 3.6, loading it raises ImportError. Raises ValueError for a namespace that
    is no name, for another backend, and where a folder of a copy's name holds something else.

    Equivalent::

        path = normreg.hub.write("normreg-layers")                        # or: make hub HUB=normreg-layers
        layer = kernels.LocalLayerRepository(path, layer_name="RMSNorm")  # or normreg.hub.mapping(path)

    Source: https://huggingface.co/docs/kernels/kernel-requirements
    """
    if namespace is not None and not f"_{namespace}".isidentifier():
        raise ValueError(
            f"expected a namespace of letters, digits and underscores, got {namespace!r}: pass a name that "
            f"no other repository has"
        )
    if isinstance(backends, str):
        raise ValueError(f"expected a sequence of backends, got {backends!r}: pass [{backends!r}]")
    if unknown := {*backends}.difference(BACKENDS):
        raise ValueError(f"expected backends of {', '.join(BACKENDS)}, got {unknown.pop()!r}: leave it out")
    texts, root = contents(), Path(folder).absolute()
    copies = {backend: root / "build" / f"torch-{backend}" for backend in backends}
    for copy in copies.values():
        if copy.exists() and not is_of_before(copy):
            raise ValueError(
                f"expected a folder to write to, or a copy that was written before, got {copy}, of other "
                f"files: pass another one, or delete it"
            )
    name = namespace or f"{PACKAGE}_{sha256(''.join(texts.values())).hex()[:8]}"
    for backend, copy in copies.items():
        shutil.rmtree(copy, ignore_errors=True)
        for path, text in texts.items():
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).write_text(text)
        (copy / "metadata.json").write_text(metadata(texts, f"_{name}_{backend}", backend))
    return root

"""Where our layers run beside eager mode: what the table of docs/places.md is made of.

`pytest --all -m place --places FILE` writes which tests show each place, and how many cases of theirs passed.
A second run, with other kernels of the CPU, adds to the file.
"""

import importlib.metadata
import json

PLACES = {
    "eager mode": "kernels",
    "torch.compile": "kernels: launched by Inductor, or inside our operators where a size is symbolic",
    "torch.export": "one of our operators for each call",
    "AOTInductor": "kernels, where sizes are constants; on a CPU it ends at their launchers in C++",
    "torch.onnx": "ONNX's operators, by `normreg.onnx_table()`",
    "torch.fx": "kernels: layers are leaves",
    "torch.func": "torch's operators",
    "DistributedDataParallel": "kernels",
    "fully_shard": "kernels",
    "DTensor": "kernels, where a rank has whole rows; else torch's operators",
    "Hugging Face's kernels": "kernels",
}


class Shown:
    """A plugin of pytest that writes the file."""

    def __init__(self, file):
        self.file, self.places, self.found = file, {}, {}

    def pytest_collection_modifyitems(self, items):
        for item in items:
            for marker in item.iter_markers("place"):
                (name,) = marker.args
                assert name in PLACES, f"{item.nodeid}: expected one of {[*PLACES]}, got {name!r}"
                self.places.setdefault(item.nodeid, []).append(name)

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            for name in self.places.get(report.nodeid, ()):
                test = report.nodeid.partition("[")[0].removeprefix("tests/")
                counts = self.found.setdefault(name, {}).setdefault(test, {})
                counts[report.outcome] = counts.get(report.outcome, 0) + 1

    def pytest_sessionfinish(self):
        before = json.loads(self.file.read_text())["places"] if self.file.exists() else {}
        places = {
            name: {
                "runs": runs,
                "tests": dict(
                    sorted((before.get(name, {}).get("tests", {}) | self.found.get(name, {})).items())
                ),
            }
            for name, runs in PLACES.items()
        }
        versions = {name: importlib.metadata.version(name) for name in ("torch", "triton")}
        self.file.write_text(json.dumps(versions | {"places": places}, indent=1) + "\n")

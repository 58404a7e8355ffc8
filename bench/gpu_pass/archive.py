"""Results that a machine sent in one archive, put beside those that are there."""

import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path


def unpack(archive, results):
    """Adds the folders of machines in the archive to the results. Returns the paths written.

    Runs are added to those of a file; any other file takes the place of the one before.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
        except (OSError, tarfile.TarError) as error:
            sys.exit(f"{archive}: expected the results.tgz of a machine; {type(error).__name__}: {error}")
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        relative = [path.relative_to(folder) for path in files]
        strays = [str(path) for path in relative if len(path.parts) == 1]
        if strays or not files:
            found = ", ".join(strays) or "nothing"
            sys.exit(f"{archive}: expected a folder named for the GPU with the results in it, found {found}")
        return [add(file, results / path) for file, path in zip(files, relative)]


def add(file, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and (new := runs_in(file)) and (old := runs_in(target)):
        new = [run for run in new if run not in old]  # of an archive that was unpacked before
        target.write_text(json.dumps({"runs": [*old, *new]}, indent=1) + "\n")
    else:
        shutil.copyfile(file, target)
    return target


def runs_in(path):
    """None where the file has no runs."""
    if path.suffix != ".json":
        return None
    found = json.loads(path.read_text())
    return found.get("runs") if isinstance(found, dict) else None

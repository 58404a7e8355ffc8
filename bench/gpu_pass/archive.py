"""Unpacks the archive of results that a machine sent, beside those that are there."""

import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from bench.harness.result_files import add_runs, runs_in


def unpack(archive, results):
    """Adds the folders of machines in the archive to the results; returns the paths written.

    Runs are added to those that a file has; any other file replaces the old one.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
        except (OSError, tarfile.TarError) as error:
            sys.exit(
                f"{archive}: expected a results.tgz as `make gpu` writes; {type(error).__name__}: {error}"
            )
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        relative = [path.relative_to(folder) for path in files]
        strays = [str(path) for path in relative if len(path.parts) == 1]
        if strays or not files:
            found = ", ".join(strays) or "nothing"
            sys.exit(f"{archive}: expected a folder named for the GPU with the results in it, found {found}")
        return [add(file, results / path) for file, path in zip(files, relative)]


def add(file, target):
    if (new := runs_in(file)) and (old := runs_in(target)):
        add_runs(target, [run for run in new if run not in old])  # an archive may be unpacked again
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return target

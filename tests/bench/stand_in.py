"""A stand-in for checks that `bench.harness.side_by_side` runs in processes, which start without torch."""

import sys
import time

seen = []  # by a process


def do(check, name):
    if name == "dies":
        sys.exit(3)
    if name == "hangs":
        time.sleep(600)
    seen.append(name)
    return dict(ok=True, spoiled=name == "spoils", seen=[*seen])

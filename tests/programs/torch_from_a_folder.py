"""Imports torch from a folder, in place of the installed one, as a command of bench does."""

import sys

from bench.harness import interrupts

interrupts.install()
sys.path.insert(0, sys.argv[1])
import torch  # noqa: E402, F401

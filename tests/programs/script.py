"""Runs a script with its arguments, as a user would from another folder, with torchvision or its stand-in."""

import runpy
import sys
import warnings

from support import torchvision

script, *arguments = sys.argv[1:]
sys.argv[:] = [script, *arguments]
sys.path[0] = ""  # of the folder that it runs in, not of this one
warnings.simplefilter("ignore")
with torchvision.at_hand():
    runpy.run_path(script, run_name="__main__")

"""Runs a notebook and stores its outputs in it: python tests/programs/store_outputs.py NOTEBOOK

It needs nbclient and ipykernel, which the tests do not.
"""

import sys

import nbclient
import nbformat

path = sys.argv[1]
notebook = nbformat.read(path, as_version=4)
nbclient.NotebookClient(notebook, record_timing=False, kernel_name="python3").execute()
del notebook.metadata["language_info"]["version"]
nbformat.write(notebook, path)

"""Prints the files of normreg that a warm forward of LayerNorm visits, one a line."""

import sys
from pathlib import Path

import torch

import normreg
from bench.lab import stub_driver
from bench.lab.without_gpu import as_on_a_gpu

PACKAGE = Path(normreg.__file__).parent


def visits(call):
    """Files whose functions `call()` calls, in order; successive calls within one file are one visit."""
    files = []

    def seen(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            name = str(path.relative_to(PACKAGE))
            if files[-1:] != [name]:
                files.append(name)

    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(None)
    return files


record = stub_driver.install()
with as_on_a_gpu():
    layer, x = normreg.LayerNorm(64), torch.randn(3, 64)
    for _ in range(2):
        layer(x)
    record.launched.clear()
    print(*visits(lambda: layer(x)), sep="\n")
    assert [name for name, _ in record.launched] == ["layer_norm_forward_kernel"]

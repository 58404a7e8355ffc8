"""The conftest.py of `tiny.py`, whose GPU is made up."""

import test_tiny
from support.gpu_watch import GpuWatch


def pytest_configure(config):
    config.pluginmanager.register(GpuWatch(config, works=lambda: not test_tiny.spoilt))

"""Ends the process where a test that failed has left a GPU that no longer works.

An illegal address and a failed CUDA-graph capture spoil everything after them: no later test of the process
would say anything of itself. So the process ends, and pytest-xdist starts another worker.
"""

import os

import pytest


class GpuWatch:
    """A plugin of pytest that ends the process once a test has failed and `works` says no."""

    def __init__(self, config, works):
        self.worker = hasattr(config, "workerinput")  # of pytest-xdist
        self.works, self.spoilt_by = works, None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item):
        report = yield
        if report.failed and self.spoilt_by is None and not self.works():
            self.spoilt_by = item.nodeid
            report.sections.append(("GPU", "It does not work after this failure: the process ends."))
        return report

    @pytest.hookimpl(trylast=True)  # xdist has sent the reports, each at once
    def pytest_runtest_logfinish(self):
        if self.spoilt_by is None:
            return
        if self.worker:
            # before xdist hears that the test is complete: then the next one would be what is lost
            os._exit(1)
        pytest.exit(
            f"the GPU does not work after {self.spoilt_by}: run the tests with -n, or the others apart", 3
        )

"""A test that fails, and one that has to be stopped, which leaves a file once it has begun."""

import time
from pathlib import Path


def test_wrong():
    assert 1 == 2


def test_slow():
    Path(__file__).with_name("begun").touch()
    time.sleep(600)

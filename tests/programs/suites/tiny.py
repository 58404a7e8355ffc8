"""Tests of which one spoils the GPU."""

import pytest

spoilt = False


@pytest.mark.parametrize("i", range(8))
def test_good(i):
    assert not spoilt, "the process went on"


def test_bad():
    raise AssertionError("wrong, and the GPU works")


@pytest.mark.parametrize("i", range(8, 12))
def test_good_too(i):
    assert not spoilt, "the process went on"


def test_spoils():
    global spoilt
    spoilt = True
    raise RuntimeError("an illegal address")


@pytest.mark.parametrize("i", range(12, 24))
def test_good_still(i):
    assert not spoilt, "the process went on"

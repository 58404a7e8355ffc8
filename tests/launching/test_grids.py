"""How many of 132 multiprocessors have a program of each launch of a backward that adds up rows."""

import pytest

from bench.operations.case import cases_of
from bench.perf import grids

FEWEST = grids.MULTIPROCESSORS * 3 // 4


# module scope, because guards would fill the tensors that are allocated
@pytest.fixture(scope="module", params=grids.OPERATIONS)
def launches(request):
    return [one for case in grids.cases_in_sizes(request.param) for one in grids.measure(case)]


def test_three_of_four_multiprocessors_work_where_there_are_tiles(launches):
    """Or as many as a tile or two for each make."""
    idle = [
        (one["case"], one["kernel"], one["grid"], one["tiles"])
        for one in launches
        if one["multiprocessors"] < min(FEWEST, one["tiles"] // 2)
    ]
    assert not idle


# multiprocessors with a program that adds up rows, by rows: a tile is one row of 4096, or two of 1024
BY_ROWS = {
    "layer_norm {}x4096": (64, 128, 132, 132, 132, 132, 132, 132),
    "rms_norm {}x4096": (64, 128, 132, 132, 132, 132, 132, 132),
    "dropout_add_norm prenorm dropout+add+LayerNorm {}x4096": (64, 128, 132, 132, 132, 132, 132, 132),
    "bias_act_dropout bias+gelu+dropout {}x1024": (32, 64, 132, 132, 132, 132, 132, 132),
    "dropout_add scaled dropout+add {}x4096": (128, 132, 132, 132, 132, 132, 132, 132),
    "group_norm {}x512": (32, 64, 132, 132, 132, 132, 132, 132),
}


@pytest.fixture(scope="module", params=BY_ROWS)
def by_rows(request):
    operation, _, text = request.param.partition(" ")
    cases = [cases_of(operation, text.format(rows))[0] for rows in grids.ROWS]
    return request.param, tuple(next(grids.measure(case))["multiprocessors"] for case in cases)


def test_multiprocessors_that_work_by_rows(by_rows):
    text, multiprocessors = by_rows
    assert multiprocessors == BY_ROWS[text]

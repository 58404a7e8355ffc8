"""The tables of `bench host`, of samples that are made up."""

import re

from bench.harness import turns
from bench.perf import host
from bench.perf.host_parts import own_times


def record(samples, parts):
    return dict(
        operation="layer_norm",
        case="8x768",
        direction="forward",
        samples_us={name: samples[name] for name in host.CONTESTANTS},
        parts_us=parts,
    )


def cells(table):
    """The case and the cells of each row below it, by where the rule has gaps."""
    _, rule, case, *rows = table.splitlines()
    columns = [match.span() for match in re.finditer("-+", rule)]
    return [[case, *(row[start:end].strip() for start, end in columns)] for row in rows]


def test_functions_take_turns():
    called = []
    samples = turns.samples({name: lambda name=name: called.append(name) for name in "ab"}, turns=3, calls=2)
    assert "".join(called) == "ab" + "aabb" * 3
    assert {name: len(taken) for name, taken in samples.items()} == {"a": 3, "b": 3}
    assert min(map(min, samples.values())) > 0


def test_a_ratio_is_that_of_the_times_beside_it():
    """Also where the machine became slower from turn to turn, so that ratios of the turns tell another."""
    samples = {
        "normreg": [131.5, 50.0, 90.0],
        "plain launch": [40.0, 80.0, 80.0],
        "torch": [100.0, 80.0, 100.0],
    }
    ((case, direction, ours, plain, torch, *ratios),) = cells(host.layers_table([record(samples, {})]))
    assert (case, direction, ours, plain, torch) == ("8x768", "forward", "50.0", "40.0", "80.0")
    assert ratios == ["1.25", "0.62"]


def test_parts_add_up_to_the_call():
    """Autograd's part is timed with the launcher in it; allocations and launches are in the launcher."""
    parts = {"dispatch": [3.0, 2.0], "autograd": [12.0, 11.0], "launcher": [8.0, 7.0], "launches": [4.0, 3.0]}
    own = own_times(20.0, turns.times(parts))
    assert own == {"dispatch": 2.0, "autograd": 4.0, "launcher": 7.0, "launches": 3.0, "rest": 7.0}
    samples = {name: [20.0, 30.0] for name in host.CONTESTANTS}
    (row,) = cells(host.parts_table([record(samples, parts)]))
    assert row[2:] == ["20.0", "2.0", "4.0", "7.0", "", "3.0", "7.0"]

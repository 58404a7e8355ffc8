"""DTensors and sequence parallelism on real ranks; the checks are in `ranks_tensor_parallel.py`."""

import pytest
import worlds

WORLDS = {
    "two ranks": (2, [
        "sequence_parallel", "placements_of_every_kind", "second_derivatives", "masks_of_shards",
    ]),
    "a mesh of four ranks": (4, ["a_mesh_of_two_dimensions"]),
}  # fmt: skip


@pytest.mark.parametrize(("size", "checks"), WORLDS.values(), ids=WORLDS)
def test_dtensors(tmp_path, size, checks):
    worlds.check("ranks_tensor_parallel", checks, size, tmp_path)

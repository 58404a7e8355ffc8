"""DTensors and sequence parallelism on real ranks; the checks are in `ranks_tensor_parallel.py`."""

import pytest
import worlds

CHECKS = [
    (2, "sequence_parallel"),
    (2, "placements_of_every_kind"),
    (2, "second_derivatives"),
    (2, "masks_of_shards"),
    (4, "a_mesh_of_two_dimensions"),
]


@pytest.mark.place("DTensor")
@pytest.mark.parametrize(("size", "check"), CHECKS)
def test_dtensors(size, check):
    worlds.check("ranks_tensor_parallel", check, size)

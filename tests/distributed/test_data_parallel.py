"""DistributedDataParallel, fully_shard, dropout across ranks; the checks are in `ranks_data_parallel.py`."""

import pytest
import worlds

SHARDED = ["fully_sharded_in_mixed_precision", "frozen_layers_under_fully_shard"]
CHECKS = [
    "training_is_that_of_the_whole_batch",
    "two_forwards_before_a_backward",
    "unused_parameters",
    "a_static_graph_with_checkpoints",
    "accumulated_gradients",
    "masks_of_ranks",
    "checkpoints_draw_the_same_masks",
    "a_state_dict_saved_and_loaded",
]


@pytest.mark.place("DistributedDataParallel")
@pytest.mark.parametrize("check", CHECKS)
def test_data_parallel(check):
    worlds.check("ranks_data_parallel", check, 2)


@pytest.mark.place("fully_shard")
@pytest.mark.parametrize("check", SHARDED)
def test_fully_shard(check):
    worlds.check("ranks_data_parallel", check, 2)

"""The files that a reader visits who follows one call from the module down to the launch."""

import programs


def test_a_warm_layer_norm_visits_six_files_each_once():
    visited = programs.compiling("files_visited").stdout.split()
    assert visited == [
        "nn/layer_norm.py",
        "functional/norms.py",
        "functional/dispatch.py",
        "ops/operation.py",
        "kernels/layer_norm/__init__.py",
        "kernels/launch.py",
    ]

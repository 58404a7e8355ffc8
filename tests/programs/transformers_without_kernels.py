"""Trains the models of transformers as before, on a CPU and outside the interpreter."""

import copy
import os
import sys

for variable in ("TRITON_INTERPRET", "NORMREG_CPU_KERNELS"):  # before normreg is imported
    os.environ.pop(variable, None)
sys.modules["kernels"] = None


def main():
    import torch
    import transformers
    from support.hugging_face import MODELS, assert_agrees, built, in_float64, train

    import normreg

    for name in MODELS:
        model, inputs = built(transformers, name, torch.device("cpu"))
        twin, exact = copy.deepcopy(model), in_float64(model, inputs, 3)
        normreg.replace(model, fuse=True)
        assert_agrees(train(model, inputs, 3), train(twin, inputs, 3), exact)
        assert {call.path for call in normreg.explain(model, **inputs)} <= {"torch", "nothing"}


main()

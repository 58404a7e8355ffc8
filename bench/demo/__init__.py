"""The main job: two torch.nn models trained side by side with the same two on normreg's layers.

A convolutional network (BatchNorm2d, Dropout) and an nn.TransformerEncoder classifier (LayerNorm,
Dropout) learn the 1,797 handwritten digits that scikit-learn ships, each from the same weights and
on the same batches as its copy after `normreg.replace`.

With dropout off the two may differ by rounding only. How much rounding matters is measured: a
third copy trains in float64, and torch.nn's own distance from that is the yardstick. Both networks
use GELU because it is smooth: at the kink of a ReLU a rounding difference becomes a jump. With
dropout on the masks differ, and the test accuracies must agree within the noise of a test set of
that size. The exit status is 1 where a check fails.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are defined, some of them as Triton is imported

import triton

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"

"""Instructions of kernels that compile in a fraction of a second, chosen so that few are missing."""

from small_kernels import opcodes, ptx_of

from bench.operations import cases
from bench.perf import static

# case, kernel, target
CHOSEN = (
    ("batch_norm+add+relu fp32 32x64x56x56 channels_last", "batch_norm_statistics_kernel", "sm_90"),
    ("batch_norm+add+relu fp32 32x64x56x56 channels_last", "batch_norm_normalize_kernel", "sm_90"),
    ("batch_norm+add+relu bf16 32x64x56x56", "batch_norm_normalize_kernel", "sm_100"),
    ("batch_norm+add+relu bf16 32x64x56x56", "batch_norm_backward_sums_kernel", "sm_100"),
    ("batch_norm+add+gelu bf16 64x512x1x1", "batch_norm_tile_backward_kernel", "sm_80"),
    ("scaled drop path+add bf16 64x197x768", "dropout_add_kernel", "sm_90"),
    ("dropout fp64 1024x1024", "dropout_kernel", "sm_80"),
    ("rms_norm bf16 4096x64", "layer_norm_backward_kernel", "sm_90"),
    ("rms_norm bf16 4096x64", "layer_norm_forward_kernel", "sm_80"),
    ("rms_norm bf16 4096x64", "layer_norm_forward_kernel", "sm_100"),
    ("group_norm fp16 16x1280x8x8", "group_norm_backward_kernel", "sm_100"),
    ("group_norm fp16 16x1280x8x8", "column_sums_kernel", "sm_80"),
    ("group_norm bf16 16x320x64x64", "group_norm_backward_merge_kernel", "sm_100"),
)


def found():
    """{kernel, case and target: its instructions}"""
    named = {str(case): case for case in cases("static", None)}
    of_each = {}
    for name, kernel, target in CHOSEN:
        (noted, *_) = [n for n in static.launches(named[name]) if n.kernel.__name__ == kernel]
        ptx = ptx_of(static.compile_launch(noted, static.TARGETS[target]))
        of_each[f"{kernel} of {name} for {target}"] = opcodes(ptx)
    return of_each

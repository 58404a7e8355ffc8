"""What runs kernels on tensors of the CPU.

The environment variable NORMREG_CPU_KERNELS is read when normreg is imported:

    interpreter     Triton's interpreter; TRITON_INTERPRET=1, Triton's own variable, means the same. Its
                    casts to bfloat16 and its sums are corrected for the whole process (`interpreter`)
    compiled        compiled code, by a Triton driver that executes it in host memory, as `bench.lab` has one
    none, or unset  nothing: tensors of the CPU go to torch's own operators
"""

import os
import sys
from typing import Any

VARIABLE = "NORMREG_CPU_KERNELS"
CHOICES = ("interpreter", "compiled", "none")


def _chosen() -> str | None:
    chosen = os.environ.get(VARIABLE) or "none"
    if chosen not in CHOICES:
        raise ValueError(f"{VARIABLE}: expected one of {', '.join(CHOICES)}, got {chosen!r}")
    if chosen == "interpreter":
        _interpret()
    import triton  # after its own variable is set

    if triton.knobs.runtime.interpret:
        if chosen == "compiled":
            raise ValueError(f"{VARIABLE}=compiled: expected TRITON_INTERPRET to be unset, got 1: unset one")
        from normreg.kernels import interpreter  # which imports triton

        interpreter.cast_bfloat16_as_gpus_do()
        interpreter.add_in_pairs()
        interpreter.fuse_multiplication_and_addition()
        return "interpreter"
    if chosen == "compiled":
        _expect_host_driver(triton.runtime.driver)
        return "compiled"
    return None


def _interpret() -> None:
    """Sets Triton's variable, read where kernels are defined: those of Triton itself when it is imported."""
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"{VARIABLE}=interpreter: expected normreg to be imported before triton, got triton imported "
            "without its interpreter: import normreg first, or set TRITON_INTERPRET=1 as well"
        )
    os.environ["TRITON_INTERPRET"] = "1"


def _expect_host_driver(driver: Any) -> None:
    try:
        found = driver.active
    except RuntimeError:  # no driver of a GPU, or several
        found = None
    if not getattr(found, "executes_in_host_memory", False):
        raise RuntimeError(
            f"{VARIABLE}=compiled: expected a Triton driver that executes kernels in host memory, got "
            f"{type(found).__name__ if found else 'none'}: call bench.lab.install() before importing normreg"
        )


KERNELS = _chosen()

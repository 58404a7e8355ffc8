"""What runs kernels on tensors of the CPU.

The environment variable NORMREG_CPU_KERNELS is read when normreg is imported:

    interpreter     Triton's interpreter; TRITON_INTERPRET=1, Triton's own variable, means the same. Its
                    casts, its sums and its maxima are corrected for the whole process (`interpreter`)
    compiled        compiled code, by a Triton driver that executes it in host memory, as `bench.lab` has one
    none, or unset  nothing: tensors of the CPU go to torch's own operators

Where Triton cannot be imported, tensors of every device go there.
"""

import functools
import os
import warnings
from typing import Any

VARIABLE = "NORMREG_CPU_KERNELS"
CHOICES = ("interpreter", "compiled", "none")


def _chosen() -> tuple[str | None, str | None]:
    """What runs kernels on tensors of the CPU, and why Triton cannot be imported."""
    chosen = os.environ.get(VARIABLE) or "none"
    if chosen not in CHOICES:
        raise ValueError(
            f"{VARIABLE}: expected one of {', '.join(CHOICES)}, got {chosen!r}: set one of "
            f"these, or unset it for none"
        )
    if chosen == "interpreter":
        os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are defined, Triton's own at its import
    try:
        import triton
    except ImportError as error:
        return None, _why_absent(error, chosen)
    if triton.knobs.runtime.interpret:
        if chosen == "compiled":
            raise ValueError(f"{VARIABLE}=compiled: expected TRITON_INTERPRET to be unset, got 1: unset one")
        if isinstance(triton.language.sum, triton.JITFunction):
            raise RuntimeError(
                f"{_setting(chosen)}: expected normreg to be imported before triton, got triton imported "
                "without its interpreter: import it first, or set TRITON_INTERPRET=1 before Python starts"
            )
        from normreg.kernels import interpreter  # which imports triton

        interpreter.cast_bfloat16_as_gpus_do()
        interpreter.cast_float8_as_gpus_do()
        interpreter.ignore_nan_in_maxima()
        interpreter.add_in_pairs()
        interpreter.fuse_multiplication_and_addition()
        return "interpreter", None
    if chosen == "compiled":
        _expect_host_driver(triton.runtime.driver)
        return "compiled", None
    return None, None


def _why_absent(error: ImportError, chosen: str) -> str:
    """Why Triton cannot be imported; raises where that was asked for what needs it."""
    asked = _setting(chosen)
    unless = f"unset {asked.partition('=')[0]}: tensors of the CPU then go to torch's own operators"
    if error.name == "numpy":
        raise ModuleNotFoundError(
            f"{asked}: expected numpy to be installed, which Triton's interpreter needs: pip install numpy, "
            f"or {unless}",
            name="numpy",
        ) from None
    missing = isinstance(error, ModuleNotFoundError) and error.name == "triton"
    what = str(error) if missing else f"its import fails with {error}"
    if chosen != "none" or _asks(os.environ.get("TRITON_INTERPRET")):
        raise ImportError(
            f"{asked}: expected Triton to be installed, got: {what}: pip install triton, which there is for "
            f"Linux, or {unless}",
            name="triton",
        ) from None
    return f"Triton is not installed: {what}"


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


def _setting(chosen: str) -> str:
    """The setting of the variable that asks for kernels."""
    triton = f"TRITON_INTERPRET={os.environ.get('TRITON_INTERPRET')}"
    return triton if chosen == "none" else f"{VARIABLE}={chosen}"


def _asks(value: str | None) -> bool:
    """Whether a value of either variable asks for kernels: Triton takes several words for 1."""
    return (value or "").lower() in (*CHOICES[:2], "1", "true", "on", "yes", "y")


def warn_of_late_variables() -> None:
    """Warns of a variable that asks for kernels but was set too late, once for each value of it."""
    for name, before in READ.items():
        value = os.environ.get(name)
        if value != before and KERNELS is None and _asks(value):
            _warn(name, value)


@functools.cache
def _warn(name: str, value: str) -> None:
    warnings.warn(
        f"{name}={value} was set after normreg was imported, which reads it then: tensors of the CPU go to "
        f"torch's operators; set it before Python starts, or above the first import of normreg and triton",
        stacklevel=3,
    )


@functools.cache
def warn_at_the_first_tensor() -> None:
    """`warn_of_late_variables`, at the first call alone."""
    warn_of_late_variables()


KERNELS, ABSENT = _chosen()
READ = {name: os.environ.get(name) for name in (VARIABLE, "TRITON_INTERPRET")}

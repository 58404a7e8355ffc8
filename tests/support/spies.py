"""What tests put in the place of `launch.launch`."""

from normreg.kernels import launch


def noting(names):
    """`launch.launch`, which first appends the kernel's name to the list."""
    real = launch.launch

    def spy(call, *tensors, **options):
        names.append(call.kernel.fn.__name__)
        return real(call, *tensors, **options)

    return spy

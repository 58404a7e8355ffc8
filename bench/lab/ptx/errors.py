"""What a launch can end with beside results."""


class GpuFault(Exception):
    """A GPU would fault here, or its result would depend on which thread came first."""


class Unsupported(Exception):
    """The PTX has something that this emulator does not execute."""

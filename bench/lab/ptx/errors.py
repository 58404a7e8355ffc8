"""The errors that end a launch."""


class GpuFault(Exception):
    """A GPU would fault here, or its result would depend on the order of threads."""


class Unsupported(Exception):
    """The PTX contains something that this emulator does not execute."""

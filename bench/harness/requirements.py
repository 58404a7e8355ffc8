"""The message of a command that needs a library which is not installed."""

import contextlib
import sys


@contextlib.contextmanager
def imports_of(command):
    """Ends the process, saying how to install the library, where an import meanwhile does not find one."""
    try:
        yield
    except ModuleNotFoundError as error:
        print(f"{command} needs {error.name}, not installed here: pip install --group bench", file=sys.stderr)
        sys.exit(2)

"""What `replace(fuse=True)` does: one call for a norm or dropout and what stands beside it in a forward."""


class Untraceable(Exception):
    """There is no graph of a forward; the message says why."""

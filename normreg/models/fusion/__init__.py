"""What `replace(fuse=True)` does: one call for a norm or dropout and what stands beside it in a forward."""

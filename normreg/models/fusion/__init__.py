"""What `replace(fuse=True)` does: one operator for a norm or dropout and what stands beside it in a graph.

Dynamo traces and guards; here is what it hands its graphs to. steps reads a graph's calls, memory says what
they share and overwrite, patterns replaces those that one operator computes, running makes the result run as
eager mode does, names is how reports call them, backend is what torch.compile is given, and calls puts it
into a model.
"""

"""One file per operation: its autograd.Function, and the call that takes it only where a gradient is wanted.

Arguments arrive checked. `functional` does that.
"""

"""The operations, a small file each: forward, fake, backward and formula.

`operation.Operation` builds their operators and autograd.Functions and picks the path of a call. Arguments
arrive checked: `functional` does that.
"""

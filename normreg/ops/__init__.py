"""One file per operation: its autograd.Function, its operators, and the call that chooses.

The Function is taken where a gradient is wanted, the operator where torch.compile traces. Arguments arrive
checked: `functional` does that.
"""

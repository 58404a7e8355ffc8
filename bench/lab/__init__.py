"""What stands in for a GPU: the PTX that Triton compiles, executed on tensors in host memory."""

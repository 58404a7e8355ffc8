"""The parts of `python -m bench` that measure. Each is a module with `run`, `table` and `CAPTION`.

host          time that Python takes from a layer's call to its launches
static        registers, spills and access widths of the compiled kernels
instructions  instructions that compiled kernels execute, and a model of a GPU
ledger        bytes moved and kernels launched, with the grids of an H100
exactness     errors against float64, over torch's own
grids         multiprocessors that each launch of a backward has a program for
speed         device and end-to-end time on a GPU
models        training steps of five networks

host_parts    the parts of a layer's call that `host` times
peers         the libraries that are measured beside normreg
contest       a case as all peers have it, and one peer's calls on it
"""

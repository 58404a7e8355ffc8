"""Times of several functions on this CPU, measured in turns, and the one rule by which they are compared.

On a shared machine times drift, and whatever disturbs a call makes it longer. So functions take turns, a
function's time is that of its fastest turn, and a ratio is that of the two times that stand beside it.
"""

import time


def microseconds(call, calls):
    """Microseconds of a call, the mean of several."""
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls * 1e6


def samples(functions, turns, calls):
    """{name: microseconds of a call in each turn} of {name: function}, each called once before."""
    for function in functions.values():
        function()
    measured = [{name: microseconds(f, calls) for name, f in functions.items()} for _ in range(turns)]
    return {name: [turn[name] for turn in measured] for name in functions}


def times(samples_us):
    """{name: time} of what `samples` returned."""
    return {name: min(measured) for name, measured in samples_us.items()}

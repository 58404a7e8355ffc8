"""Prints, as JSON, the ledger of the cases that it is given, of kernels in the interpreter."""

import json
import sys

from bench.__main__ import load
from bench.lab import interpreter

ledger = load("ledger")
interpreter.speed_up()
for case in ledger.cases("ledger"):
    if str(case) in sys.argv[1:]:
        for record in ledger.measure(case):
            print(json.dumps(record), flush=True)

"""Prints, as JSON, the ledger of dropout's forward."""

import json

import torch

from bench.lab import interpreter
from bench.operations.case import Case
from bench.perf import ledger

interpreter.speed_up()
forward = next(ledger.measure(Case("dropout", (320, 1024), torch.float32)))
print(json.dumps(forward))

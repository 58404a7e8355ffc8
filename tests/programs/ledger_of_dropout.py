"""Prints, as JSON, the ledger of dropout's forward."""

import json

import torch

from bench.operations.case import Case
from bench.perf import ledger
from bench.perf.instructions import machine

forward = next(ledger.measure(Case("dropout", (320, 1024), torch.float32), machine(ledger.ARCH)))
print(json.dumps(forward))

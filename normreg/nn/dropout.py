import torch

from normreg import functional


class Dropout(torch.nn.Dropout):
    """`torch.nn.Dropout` on `normreg.functional.dropout`."""

    def forward(self, input):
        return functional.dropout(input, self.p, self.training, self.inplace)

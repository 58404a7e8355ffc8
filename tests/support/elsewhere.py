"""Classes that stand where those of other libraries do."""

import types

from torch import nn


def at(path):
    """A class decorator that puts the class, and the code of its forward, at that import path."""

    def place(cls):
        cls.__module__, _, cls.__qualname__ = path.rpartition(".")
        if "forward" in vars(cls):
            own = cls.forward
            there = dict(own.__globals__, __name__=cls.__module__)
            cls.forward = types.FunctionType(own.__code__, there, closure=own.__closure__)
        return cls

    return place


@at("timm.layers.norm_act.BatchNormAct2d")
class TimmBatchNormAct2d(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


@at("timm.layers.norm_act.GroupNormAct")
class TimmGroupNormAct(nn.GroupNorm):
    _fast_norm = False

    def __init__(self, channels):
        super().__init__(4, channels)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))

# SPDX-License-Identifier: Apache-2.0
"""DrNAS: weights drawn from a Dirichlet distribution, partial channels that widen on the way."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from originals import darts
from originals.operations import PRIMITIVES, searched
from originals.pc_darts import channel_shuffle


class MixedOp(nn.Module):
    def __init__(self, C: int, stride: int, k: int = 1) -> None:
        super().__init__()
        self._ops = nn.ModuleList(searched(name, C // k, stride) for name in PRIMITIVES)
        self.mp = nn.MaxPool2d(2, 2)
        self.k = k

    def forward(self, x, weights):  # type: ignore[no-untyped-def]
        width = x.shape[1] // self.k
        first, rest = x[:, :width], x[:, width:]
        out = sum(w * op(first) for w, op in zip(weights, self._ops, strict=True) if w != 0)
        if self.k == 1:
            return out
        if out.shape[2] != x.shape[2]:
            rest = self.mp(rest)
        return channel_shuffle(torch.cat([out, rest], dim=1), self.k)

    def wider(self, k: int) -> None:
        """Operations for 1/k of the channels: copies of the old channels."""
        times = self.k // k
        self.k = k
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                depthwise = part.groups > 1
                inputs = 1 if depthwise else times
                weight = part.weight.data.repeat(times, inputs, 1, 1) / inputs
                part.weight = nn.Parameter(weight)
                part.out_channels = len(weight)
                part.in_channels = len(weight) if depthwise else weight.shape[1]
                part.groups = len(weight) if depthwise else 1
            elif isinstance(part, nn.BatchNorm2d):
                part.num_features *= times
                part.running_mean = part.running_mean.repeat(times)
                part.running_var = part.running_var.repeat(times)


class Cell(darts.Cell):
    mixed_op = MixedOp


class Network(darts.Network):
    cell = Cell

    def table(self, reduction: bool) -> Tensor:
        alphas = self.alphas_reduce if reduction else self.alphas_normal
        return torch.distributions.Dirichlet(functional.elu(alphas) + 1).rsample()

# SPDX-License-Identifier: Apache-2.0
"""PC-DARTS: a quarter of the channels is computed, edges have weights of their own (betas)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from originals import darts
from originals.operations import PRIMITIVES, searched


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    n, channels, height, width = x.shape
    x = x.view(n, groups, channels // groups, height, width)
    return x.transpose(1, 2).contiguous().view(n, -1, height, width)


class MixedOp(nn.Module):
    k = 4

    def __init__(self, C: int, stride: int) -> None:
        super().__init__()
        self._ops = nn.ModuleList()
        self.mp = nn.MaxPool2d(2, 2)
        for name in PRIMITIVES:
            self._ops.append(searched(name, C // self.k, stride))

    def forward(self, x, weights):  # type: ignore[no-untyped-def]
        width = x.shape[1] // self.k
        first, rest = x[:, :width], x[:, width:]
        out = sum(w * op(first) for w, op in zip(weights, self._ops, strict=True))
        if out.shape[2] != x.shape[2]:
            rest = self.mp(rest)
        return channel_shuffle(torch.cat([out, rest], dim=1), self.k)


class ImageNetMixedOp(MixedOp):
    k = 2


class Cell(darts.Cell):
    mixed_op = MixedOp

    def forward(self, s0, s1, weights, weights2):  # type: ignore[no-untyped-def]
        def run_edge(edge: int, h: Tensor) -> Tensor:
            return weights2[edge] * self._ops[edge](h, weights[edge])

        return self.join(s0, s1, run_edge)


class Network(darts.Network):
    cell = Cell

    def _initialize_alphas(self) -> None:
        super()._initialize_alphas()
        edges = len(self.alphas_normal)
        self.betas_normal = (1e-3 * torch.randn(edges)).requires_grad_()
        self.betas_reduce = (1e-3 * torch.randn(edges)).requires_grad_()
        self._arch_parameters += [self.betas_normal, self.betas_reduce]

    def run_cell(self, cell: nn.Module, s0: Tensor, s1: Tensor) -> Tensor:
        betas = self.betas_reduce if cell.reduction else self.betas_normal
        into = [functional.softmax(row, dim=-1) for row in betas.split([2, 3, 4, 5][: self._steps])]
        return cell(s0, s1, self.table(cell.reduction), torch.cat(into))

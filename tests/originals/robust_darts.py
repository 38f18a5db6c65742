# SPDX-License-Identifier: Apache-2.0
"""RobustDARTS: other operations per edge are possible, drop-path is an argument without default."""

from __future__ import annotations

from torch import Tensor, nn

from originals import darts
from originals.operations import drop_path


class Cell(darts.Cell):
    def forward(self, s0, s1, weights, drop_prob):  # type: ignore[no-untyped-def]
        def run_edge(edge: int, h: Tensor) -> Tensor:
            out = self._ops[edge](h, weights[edge])
            identity = isinstance(self._ops[edge], nn.Identity)
            return drop_path(out, drop_prob) if drop_prob > 0.0 and not identity else out

        return self.join(s0, s1, run_edge)


class Network(darts.Network):
    cell = Cell
    drop_path_prob = 0.0

    def run_cell(self, cell: nn.Module, s0: Tensor, s1: Tensor) -> Tensor:
        return cell(s0, s1, self.table(cell.reduction), self.drop_path_prob)

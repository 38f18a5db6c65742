# SPDX-License-Identifier: Apache-2.0
"""SGAS: decided edges run one operation alone, pruned edges nothing."""

from __future__ import annotations

from torch import Tensor, nn

from originals import darts


class MixedOp(darts.MixedOp):
    def forward(self, x, weights, selected_idx=None):  # type: ignore[no-untyped-def]
        if selected_idx is None:
            return super().forward(x, weights)
        return self._ops[selected_idx](x)


class Cell(darts.Cell):
    mixed_op = MixedOp

    def forward(self, s0, s1, weights, selected_idxs=None):  # type: ignore[no-untyped-def]
        def run_edge(edge: int, h: Tensor) -> Tensor | int:
            chosen = -1 if selected_idxs is None else selected_idxs[edge]
            if chosen == -1:
                return self._ops[edge](h, weights[edge])
            return 0 if chosen == 0 else self._ops[edge](h, None, chosen)

        return self.join(s0, s1, run_edge)


class Network(darts.Network):
    cell = Cell
    normal_selected_idxs: list[int] | None = None

    def run_cell(self, cell: nn.Module, s0: Tensor, s1: Tensor) -> Tensor:
        selected = None if cell.reduction else self.normal_selected_idxs
        return cell(s0, s1, self.table(cell.reduction), selected_idxs=selected)

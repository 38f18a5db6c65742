# SPDX-License-Identifier: Apache-2.0
"""darts-pt, sota/cnn: supernets with masks (weights_dict), projections and SDARTS' alphas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from originals import darts
from originals.operations import PRIMITIVES, drop_path

S5 = PRIMITIVES[1:]


class MixedOp(darts.MixedOp):
    """An operation of weight 0 does not run."""

    def forward(self, x, weights):  # type: ignore[no-untyped-def]
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True) if w != 0)


class Cell(darts.Cell):
    mixed_op = MixedOp

    def forward(self, s0, s1, weights, drop_prob=0.0):  # type: ignore[no-untyped-def]
        def run_edge(edge: int, h: Tensor) -> Tensor:
            out = self._ops[edge](h, weights[edge])
            return drop_path(out, drop_prob) if drop_prob > 0.0 and self.training else out

        return self.join(s0, s1, run_edge)


class Network(darts.Network):
    """The weights' SGD optimizer lives in the model."""

    cell = Cell

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        criterion: Any = None,
        steps: int = 4,
        multiplier: int = 4,
        stem_multiplier: int = 3,
        drop_path_prob: float = 0.0,
        **edge: Any,
    ) -> None:
        edge = {"names": S5, **edge}
        super().__init__(
            C, num_classes, layers, criterion, steps, multiplier, stem_multiplier, **edge
        )
        self.drop_path_prob = drop_path_prob
        self.num_edges, self.num_ops = self.alphas_normal.shape
        self.reset_optimizer(0.025, 0.9, 3e-4)

    def reset_optimizer(self, lr: float, momentum: float, weight_decay: float) -> None:
        self.optimizer = torch.optim.SGD(
            self.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
        )

    def get_softmax(self) -> dict[str, Tensor]:
        return {"normal": self.table(False), "reduce": self.table(True)}

    def run_cell(self, cell, s0, s1, table):  # type: ignore[no-untyped-def, override]
        return cell(s0, s1, table, self.drop_path_prob)

    def forward(self, input, weights_dict=None):  # type: ignore[no-untyped-def]
        tables: Mapping[str, Tensor] = self.get_softmax() if weights_dict is None else weights_dict
        s0 = s1 = self.stem(input)
        for cell in self.cells:
            table = tables["reduce" if cell.reduction else "normal"]
            s0, s1 = s1, self.run_cell(cell, s0, s1, table)
        out = self.global_pooling(s1)
        return self.classifier(out.view(out.size(0), -1))


class DartsNetworkProj(Network):
    """Decided edges have one-hot rows, removed ones rows of 0, written through .data."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.proj_weights = {
            kind: torch.zeros_like(self.alphas_normal) for kind in ("normal", "reduce")
        }
        self.candidate_flags = {
            kind: torch.ones(self.num_edges, dtype=torch.bool) for kind in ("normal", "reduce")
        }

    def project_op(self, eid: int, opid: int, cell_type: str) -> None:
        self.proj_weights[cell_type][eid][opid] = 1
        self.candidate_flags[cell_type][eid] = False

    def project_edge(self, eids: list[int], cell_type: str) -> None:
        """Removes edges."""
        for eid in eids:
            self.proj_weights[cell_type][eid].zero_()
            self.candidate_flags[cell_type][eid] = False

    def get_projected_weights(self, cell_type: str) -> Tensor:
        weights = self.get_softmax()[cell_type]
        for eid in range(self.num_edges):
            if not self.candidate_flags[cell_type][eid]:
                weights[eid].data.copy_(self.proj_weights[cell_type][eid])
        return weights

    def forward(self, input, weights_dict=None):  # type: ignore[no-untyped-def]
        if weights_dict is None:
            weights_dict = {kind: self.get_projected_weights(kind) for kind in self.proj_weights}
        return super().forward(input, weights_dict)


class SDartsNetwork(Network):
    """While `softmaxed`, the alphas hold the weights themselves."""

    softmaxed = False

    def softmax_arch_parameters(self) -> None:
        self._saved = [alpha.detach().clone() for alpha in self.arch_parameters()]
        for alpha in self.arch_parameters():
            alpha.data.copy_(functional.softmax(alpha, dim=-1))
        self.softmaxed = True

    def restore_arch_parameters(self) -> None:
        for alpha, value in zip(self.arch_parameters(), self._saved, strict=True):
            alpha.data.copy_(value)
        self.softmaxed = False

    def get_softmax(self) -> dict[str, Tensor]:
        if self.softmaxed:
            return {"normal": self.alphas_normal, "reduce": self.alphas_reduce}
        return super().get_softmax()


class SDartsNetworkProj(SDartsNetwork, DartsNetworkProj):
    pass

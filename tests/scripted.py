# SPDX-License-Identifier: Apache-2.0
"""A supernet of the s5 space whose score is a given function of what was removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from darts_fast.nn import Supernet
from darts_fast.spaces import get_space

Removed = dict[str, list[tuple[int, int]]]


class ScriptedNet(Supernet):
    """Loses ``harm(removed)`` points of margin; image ``t`` is right while ``100 - harm > t``.

    ``removed`` lists by cell type the (edge, op) whose weight the given table has set to 0 and the
    network itself has not. All tables seen are kept in ``tables``, the training flags in ``modes``.
    """

    def __init__(self, harm: Callable[[Removed], float]) -> None:
        super().__init__(get_space("s5"), None)
        self.harm = harm
        self.tables: list[dict[str, Tensor]] = []
        self.modes: list[bool] = []
        self.scale = nn.Parameter(torch.ones(()))
        self.bn = nn.BatchNorm2d(1, affine=False)
        self._register_alphas({"normal": "alphas_normal", "reduce": "alphas_reduce"})

    def forward(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        own = self.edge_weights()
        given = {**own, **(weights or {})}
        self.tables.append({name: table.detach().clone() for name, table in given.items()})
        self.modes.append(self.training)
        removed = {
            name: [(e, o) for e, o in torch.nonzero((given[name] == 0) & (own[name] != 0)).tolist()]
            for name in own
        }
        self.bn(x)
        margin = 100 - self.harm(removed) - x.flatten(1)[:, 0]
        logits = torch.stack([margin * self.scale / 100, torch.zeros_like(margin)], dim=1)
        # A zero that ties the output to the architecture weights.
        return logits + 0 * sum(table.sum() for table in given.values())


def scripted_batches(batches: int = 2) -> list[tuple[Tensor, Tensor]]:
    """100 images with thresholds 0.5, 1.5, ..., all of class 0."""
    x = (torch.arange(100.0) + 0.5).view(100, 1, 1, 1)
    labels = torch.zeros(100, dtype=torch.int64)
    return [(x[first::batches].contiguous(), labels[first::batches]) for first in range(batches)]


def edges_removed(removed: Removed, cell_type: str) -> set[int]:
    """Edges of which something is removed."""
    return {edge for edge, _ in removed[cell_type]}

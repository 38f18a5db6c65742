# SPDX-License-Identifier: Apache-2.0
"""The supernet of PC-DARTS (Xu et al., ICLR 2020, arXiv 1907.05737) on the NAS-Bench-201 space.

The paper searches DARTS's cells. What it changes about an edge and about a node
(`partial_channels`, `edge_normalisation`) is carried over to NAS-Bench-201's cells here as it is;
all their edges have stride 1, so that the bypass is the identity. An architecture of the benchmark
keeps every edge: the betas shape the training, and do not enter the choice of an operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from darts_fast.nn.edge_normalisation import EdgeNormalised
from darts_fast.nn.fused_cell import run_stem
from darts_fast.nn.mixed_op import check_weights
from darts_fast.nn.nasbench201 import NAS201SearchCell, TinyNetwork
from darts_fast.nn.partial_channels import bypass_sum, channel_shuffle, mixed_sum

__all__ = ["PartialSearchCell", "PartialTinyNetwork"]


class PartialSearchCell(NAS201SearchCell):
    """A `NAS201SearchCell` whose operations see the first C // k channels of every state, and whose
    forward takes a weight per edge as well.

    Args: as `NAS201SearchCell`; k. Raises ValueError unless k divides C.
    """

    def __init__(self, C: int, *arguments: Any, k: int = 4, **named: Any) -> None:
        if k < 1 or C % k:
            raise ValueError(f"PartialSearchCell: k must divide the channels, got k={k} for {C}")
        super().__init__(C // k, *arguments, **named)
        self._k = k
        # In a plain dictionary they are no modules of the cell: they hold the plans of its nodes.
        self._owners = {node: nn.Module() for node in self._incoming}

    def forward(  # type: ignore[override]
        self, x: Tensor, weights: Tensor, weights2: Tensor
    ) -> Tensor:
        """x [N, C, H, W], weights [6, ops] and weights2 [6] -> [N, C, H, W]."""
        check_weights("PartialSearchCell", weights, self._shape)
        check_weights("PartialSearchCell edges", weights2, self._shape[:1])
        mixed_channels = x.shape[1] // self._k
        both = weights2[:, None] * weights
        states = [x]
        for node, incoming in self._incoming.items():
            rows = [edge for edge, _ in incoming]
            inputs = [states[source] for _, source in incoming]
            candidates = [
                cast(nn.ModuleList, self.edges[f"{node}<-{source}"]) for _, source in incoming
            ]
            mixed = mixed_sum(
                self._owners[node],
                candidates,
                [state[:, :mixed_channels] for state in inputs],
                both[rows],
                self.zero,
                stride=1,
            )
            rest = bypass_sum([state[:, mixed_channels:] for state in inputs], weights2[rows])
            states.append(channel_shuffle(torch.cat([mixed, rest], 1), self._k))
        return states[-1]


class PartialTinyNetwork(EdgeNormalised, TinyNetwork):
    """`TinyNetwork` of `PartialSearchCell`s with the edge parameters `betas_cell`.

    Args: as `TinyNetwork`; k, the share 1/k of mixed channels, which must divide C. The weights
    that forward takes are those of the operations; the edges have their own (`edge_importance`).
    """

    def __init__(
        self, C: int, N: int, num_classes: int, *arguments: Any, k: int = 4, **named: Any
    ) -> None:
        self._k = k
        super().__init__(C, N, num_classes, *arguments, **named)
        self._register_betas({"cell": "betas_cell"})

    def _cell(self, C: int) -> NAS201SearchCell:
        return PartialSearchCell(
            C,
            self.space.edges,
            self.space.primitives["cell"],
            zero=self._zero,
            affine=self._affine,
            track_running_stats=self._track_running_stats,
            k=self._k,
        )

    def _fresh(self, *arguments: Any, **named: Any) -> TinyNetwork:
        return PartialTinyNetwork(*arguments, k=self._k, **named)

    def _features(self, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        shares = self.edge_importance()["cell"]
        x = run_stem(self.stem, x)
        for cell in self.cells:
            x = cell(x, weights["cell"], shares) if isinstance(cell, PartialSearchCell) else cell(x)
        out: Tensor = self.lastact(x)
        return out

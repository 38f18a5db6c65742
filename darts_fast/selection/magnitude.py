# SPDX-License-Identifier: Apache-2.0
"""Selection by the size of the architecture weights (DARTS, section 2.4)."""

from __future__ import annotations

import torch

from darts_fast.nn import Supernet
from darts_fast.selection.config import Decision
from darts_fast.selection.progressive import ProgressiveSelection, strongest
from darts_fast.spaces import Genotype

__all__ = ["MagnitudeSelection", "magnitude_genotype", "magnitude_weights"]


def magnitude_weights(net: Supernet) -> dict[str, torch.Tensor]:
    """``softmax(alpha)`` of every cell type, ``[edges, ops]``, whatever the projections say."""
    return {name: alpha.detach().softmax(dim=-1) for name, alpha in net.alphas().items()}


def magnitude_genotype(net: Supernet) -> Genotype | str:
    """The genotype of the largest architecture weights; a projected network gives the same as
    before projection.
    """
    with torch.no_grad():
        return net.genotype_of(magnitude_weights(net))


class MagnitudeSelection(ProgressiveSelection):
    """Magnitude edge by edge with tuning in between: what perturbation-based selection gains by its
    criterion is what it gains over this (PT-Mag; DARTS-PT, figure 6).

    Args: see `ProgressiveSelection`.
    """

    @property
    def evaluations(self) -> int:
        """None: the weights are there."""
        return 0

    def decide_op(self, cell_type: str, edge: int) -> Decision:
        row = magnitude_weights(self.net)[cell_type][edge]
        best = int(row.argmax())
        return Decision(
            self.epoch,
            "op",
            cell_type,
            edge,
            [best],
            candidates=[list(range(len(row)))],
            strengths=[row.tolist()],
        )

    def decide_edges(self, cell_type: str, node: int) -> Decision:
        """The two edges with the largest weight other than that of ``none``, as DARTS does."""
        edges = list(self.net.space.node_edges[node])
        weights = magnitude_weights(self.net)[cell_type]
        names = self.net.space.primitives[cell_type]
        worth = [
            max(
                w
                for w, name in zip(weights[edge].tolist(), names[edge], strict=True)
                if name != "none"
            )
            for edge in edges
        ]
        return Decision(
            self.epoch,
            "edge",
            cell_type,
            node,
            strongest(edges, worth),
            candidates=[edges],
            strengths=[worth],
        )

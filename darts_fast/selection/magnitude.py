# SPDX-License-Identifier: Apache-2.0
"""Selection by the size of the architecture weights (DARTS, section 2.4)."""

from __future__ import annotations

import torch

from darts_fast.nn import Supernet
from darts_fast.selection.config import Decision
from darts_fast.selection.limits import KEPT_EDGES, Limits
from darts_fast.selection.progressive import ProgressiveSelection
from darts_fast.spaces import Genotype

__all__ = ["MagnitudeSelection", "limited_magnitude", "magnitude_genotype", "magnitude_weights"]


def magnitude_weights(net: Supernet) -> dict[str, torch.Tensor]:
    """``softmax(alpha)`` of every cell type, ``[edges, ops]``, whatever the projections say."""
    return {name: alpha.detach().softmax(dim=-1) for name, alpha in net.alpha_tables().items()}


def magnitude_genotype(net: Supernet) -> Genotype | str:
    """The genotype of the largest architecture weights; a projected network gives the same as
    before projection.
    """
    with torch.no_grad():
        return net.genotype_of(magnitude_weights(net))


def limited_magnitude(net: Supernet, limits: Limits) -> Genotype | str:
    """As `Supernet.genotype`, within limits: the operations of all edges in the order of their
    weight less their price, each taken if its node has room for it and the limits can still be
    kept. With limits that bind nowhere it is the same genotype. What the network has decided has
    the weight 1, and gives way only to a limit.
    """
    space = net.space
    with torch.no_grad():
        strengths = net.strengths(net.edge_weights())
    weights = {name: table.double() for name, table in strengths.items()}
    choices = limits.choices()
    entries = [
        (cell_type, edge, op)
        for cell_type in space.cell_types
        for edge, ops in enumerate(choices.ops[cell_type])
        for op in ops
        if not space.select_topology or space.primitives[cell_type][edge][op] != "none"
    ]
    worth = {
        (name, edge, op): float(weights[name][edge, op]) - limits.price(name, edge, op)
        for name, edge, op in entries
    }
    taken: dict[tuple[str, int], int] = {}
    for name, edge, op in sorted(entries, key=lambda entry: -worth[entry]):
        same_node = space.node_edges[space.edges[edge][1]]
        room = KEPT_EDGES if space.select_topology else len(same_node)
        if (name, edge) in taken or sum((name, other) in taken for other in same_node) == room:
            continue
        trial = choices.with_op(name, edge, op, keep=True)
        if limits.reachable(trial):
            choices, taken[name, edge] = trial, op
    lowest = torch.finfo(torch.float64).tiny
    tables = {name: torch.zeros_like(table) for name, table in weights.items()}
    for (name, edge), op in taken.items():
        tables[name][edge, op] = weights[name][edge, op].clamp(min=lowest)
    return space.genotype(tables)


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
        best = self.best_op(cell_type, edge, row.tolist())
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
        prices = self.edge_prices(cell_type, edges)
        priced = [value - price for value, price in zip(worth, prices, strict=True)]
        return Decision(
            self.epoch,
            "edge",
            cell_type,
            node,
            self.best_edges(cell_type, edges, priced),
            candidates=[edges],
            strengths=[worth],
        )

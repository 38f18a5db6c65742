# SPDX-License-Identifier: Apache-2.0
"""Edge normalisation of PC-DARTS (Xu et al., ICLR 2020, arXiv 1907.05737, section 3.3): the edges
into a node are weighted with a softmax of architecture parameters of their own, the betas.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from darts_fast.nn.supernet import Supernet


class EdgeNormalised(Supernet):
    """A supernet with a beta per edge.

    A subclass calls `_register_betas` after its alphas are registered, and gives its cells what
    `edge_importance` says.
    """

    _beta_names: Mapping[str, str]

    def _register_betas(self, names: Mapping[str, str]) -> None:
        """Draw betas [edges]; names: cell type -> attribute."""
        for name in names.values():
            self._register_architecture(name, (self.space.num_edges,))
        self._beta_names = dict(names)

    def betas(self) -> dict[str, nn.Parameter]:
        """The edge parameters, [edges], of each cell type."""
        return {name: getattr(self, attribute) for name, attribute in self._beta_names.items()}

    def arch_parameters(self) -> list[nn.Parameter]:
        """Alphas [edges, ops] of every cell type, then betas [edges] of every cell type."""
        return [*super().arch_parameters(), *self.betas().values()]

    def edge_importance(self) -> dict[str, Tensor]:
        """For each cell type the softmax of the betas over the edges into each node, [edges]; 0 for
        edges that their node dropped.
        """
        found = {}
        for name, beta in self.betas().items():
            sizes = [len(edges) for edges in self.space.node_edges.values()]
            shares = torch.cat([part.softmax(0) for part in beta.split(sizes)])
            ones = torch.ones(self.space.num_edges, self.space.num_ops, device=beta.device)
            kept = self.projection.apply(name, ones).amax(1) > 0
            found[name] = torch.where(kept, shares, 0.0)
        return found

    def strengths(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Edge weights, each times its edge's importance."""
        importance = self.edge_importance()
        return {name: table * importance[name][:, None] for name, table in weights.items()}

    def _architecture(self) -> dict[str, nn.Parameter]:
        betas = {f"{name} edges": beta for name, beta in self.betas().items()}
        return {**super()._architecture(), **betas}

    def _architecture_names(self) -> list[str]:
        return [*super()._architecture_names(), *self._beta_names.values()]

# SPDX-License-Identifier: Apache-2.0
"""The supernet that perturbation-based selection projects (DARTS-PT, Wang et al., ICLR 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from darts_fast.compat.nasbench201.search_model import TinyNetwork

__all__ = ["TinyNetworkDartsProj"]


class TinyNetworkDartsProj(TinyNetwork):
    """A `TinyNetwork` with decisions, kept as `projection`."""

    @property
    def candidate_flags(self) -> Tensor:
        """bool [edges], whether the operation of an edge is open."""
        is_open = self.projection.undecided_edges("cell")
        flags = torch.zeros(self.num_edge, dtype=torch.bool)
        flags[is_open] = True
        return flags.to(self.arch_parameters()[0].device)

    @property
    def proj_weights(self) -> Tensor:
        """[edges, ops]: the one-hot rows of decided edges, zeros elsewhere."""
        return self.projection.apply("cell", torch.zeros_like(self.arch_parameters()[0]))

    def project_op(self, eid: int, opid: int) -> None:
        """Fix an edge to one operation. Raises ValueError if it is fixed already."""
        self.projection.project_op("cell", int(eid), int(opid))

    def get_projected_weights(self) -> Tensor:
        """The weights [edges, ops] with the constant rows; rows may be written into."""
        return self._edge_weights("cell")

    def get_theta(self) -> Tensor:
        return self.get_projected_weights()

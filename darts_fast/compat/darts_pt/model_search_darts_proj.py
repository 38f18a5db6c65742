# SPDX-License-Identifier: Apache-2.0
"""The supernet that perturbation-based selection projects (DARTS-PT, Wang et al., ICLR 2021,
section 4.2), with the names and the checkpoints of its code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from darts_fast.compat.darts_pt.model_search import Network
from darts_fast.nn import Projection
from darts_fast.nn.supernet import renamed_forward
from darts_fast.selection.schedule import topology_nodes

__all__ = ["DartsNetworkProj"]


class DartsNetworkProj(Network):
    """A `Network` with decisions. Edges are numbered 0 to 13, nodes with a choice 0 to 2.

    The decisions are `projection`. The original's tables are made of it when they are read: to
    change one, call `project_op`, `project_edge` or `set_state_dict`.
    """

    @property
    def nid2eids(self) -> dict[int, list[int]]:
        """The edges into each node with more than two."""
        incoming = self.space.node_edges
        return {i: list(incoming[node]) for i, node in enumerate(topology_nodes(self.space))}

    @property
    def nid2selected_eids(self) -> dict[str, dict[int, list[int]]]:
        """Cell type -> node -> the two edges it keeps, [] while that is open."""
        kept = self.projection.state_dict()["edges"]
        nodes = topology_nodes(self.space)
        return {
            name: {i: list(kept[name].get(node, [])) for i, node in enumerate(nodes)}
            for name in self.space.cell_types
        }

    @property
    def candidate_flags(self) -> dict[str, Tensor]:
        """Cell type -> bool [14], whether the operation of an edge is open."""
        ops = self.projection.state_dict()["ops"]
        return {
            name: self._flags([edge not in ops[name] for edge in range(self.num_edges)])
            for name in self.space.cell_types
        }

    @property
    def candidate_flags_edge(self) -> dict[str, Tensor]:
        """Cell type -> bool [3], whether the inputs of a node are open."""
        selected = self.nid2selected_eids
        return {
            name: self._flags([not eids for eids in selected[name].values()])
            for name in self.space.cell_types
        }

    @property
    def proj_weights(self) -> dict[str, Tensor]:
        """Cell type -> [14, ops]: the constant rows of decided edges, zeros elsewhere."""
        return {
            name: self.projection.apply(name, torch.zeros_like(alpha))
            for name, alpha in zip(self.space.cell_types, self.arch_parameters(), strict=True)
        }

    def project_op(self, eid: int, opid: int, cell_type: str) -> None:
        """Fix an edge to one operation. Raises ValueError if it is fixed already."""
        self.projection.project_op(cell_type, int(eid), int(opid))

    def project_edge(self, nid: int, eids: Iterable[int], cell_type: str) -> None:
        """Keep two inputs of a node. Raises ValueError if that is decided already."""
        node = topology_nodes(self.space)[nid]
        self.projection.project_edges(cell_type, node, [int(eid) for eid in eids])

    def get_projected_weights(self, cell_type: str) -> Tensor:
        """The weights [14, ops] with the constant rows; rows may be written into."""
        return self._edge_weights(cell_type)

    @renamed_forward
    def forward(self, input: Tensor, weights_dict: Mapping[str, Tensor] | None = None) -> Tensor:
        """Images [N, 3, H, W] -> logits; cell types in weights_dict use its weights as they are."""
        return super().forward(input, weights_dict)

    def get_state_dict(self, epoch: int, architect: Any, scheduler: Any) -> dict[str, Any]:
        """A checkpoint of the selection, as the original writes it."""
        return {
            "epoch": epoch,
            "state_dict": self.state_dict(),
            "alpha": self.arch_parameters(),
            "optimizer": self.optimizer.state_dict(),
            "arch_optimizer": architect.optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "nid2eids": self.nid2eids,
            "nid2selected_eids": self.nid2selected_eids,
            "candidate_flags": self.candidate_flags,
            "candidate_flags_edge": self.candidate_flags_edge,
            "proj_weights": self.proj_weights,
        }

    def set_state_dict(self, architect: Any, scheduler: Any, checkpoint: Mapping[str, Any]) -> None:
        """Go on from such a checkpoint, of the original or from here.

        Raises ValueError for decisions that do not belong together, RuntimeError as
        `load_state_dict` does.
        """
        projection = _read_projection(self, checkpoint)
        self.load_state_dict(checkpoint["state_dict"])
        self.set_arch_parameters(checkpoint["alpha"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        architect.optimizer.load_state_dict(checkpoint["arch_optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])
        self.projection = projection

    def _flags(self, values: list[bool]) -> Tensor:
        return torch.tensor(values, device=self.arch_parameters()[0].device)


def _read_projection(net: DartsNetworkProj, checkpoint: Mapping[str, Any]) -> Projection:
    """The decisions of a checkpoint. The row of an edge that its node dropped is zeros, so that its
    operation is not known; any will do."""
    projection = Projection(net.space)
    nodes = topology_nodes(net.space)
    for name in net.space.cell_types:
        selected = checkpoint["nid2selected_eids"][name]
        open_nodes = checkpoint["candidate_flags_edge"][name].tolist()
        kept = {nid: {*selected[nid]} for nid in net.nid2eids if not open_nodes[nid]}
        dropped = {eid for nid in kept for eid in net.nid2eids[nid] if eid not in kept[nid]}
        rows = checkpoint["proj_weights"][name]
        for eid, is_open in enumerate(checkpoint["candidate_flags"][name].tolist()):
            if is_open:
                continue
            row = rows[eid]
            if eid not in dropped and (row.sum() != 1 or row.max() != 1):
                raise ValueError(
                    f"set_state_dict: proj_weights of a decided edge must be one-hot, "
                    f"got {row.tolist()} for {name} edge {eid}"
                )
            projection.project_op(name, eid, int(row.argmax()))
        for nid, eids in kept.items():
            projection.project_edges(name, nodes[nid], eids)
    return projection

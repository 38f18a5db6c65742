# SPDX-License-Identifier: Apache-2.0
"""Decisions taken about a supernet: edges fixed to one operation, nodes to two inputs.

Source: DARTS-PT (Wang et al., ICLR 2021), section 4.2: a decided edge has a one-hot row of
weights, an edge that its node dropped a row of zeros, and both rows are constants, so that the
gradient of their alphas is exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from darts_fast.spaces import Space

_KEPT_INPUTS = 2


class Projection:
    """Which edges and nodes of each cell type of a space are decided, kept on the host.

    Nodes are named by their state index (the DARTS cells: 2 to 5). A node with two inputs has
    nothing to decide, and neither has any node of a space without a topology step.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._op: dict[str, dict[int, int]] = {name: {} for name in space.cell_types}
        self._kept: dict[str, dict[int, tuple[int, ...]]] = {name: {} for name in space.cell_types}

    def project_op(self, cell_type: str, edge: int, op: int) -> None:
        """Fix an edge to one operation.

        Raises ValueError if there is no such cell type, edge or operation, if the edge is
        decided already, or if its node dropped it.
        """
        self._check_cell_type("project_op", cell_type)
        if edge not in range(self._space.num_edges):
            raise ValueError(
                f"project_op: edge must be 0 to {self._space.num_edges - 1}, got {edge}"
            )
        if op not in range(len(self._space.primitives[cell_type][edge])):
            raise ValueError(
                f"project_op: op must be 0 to {len(self._space.primitives[cell_type][edge]) - 1}, "
                f"got {op}"
            )
        if edge in self._op[cell_type]:
            raise ValueError(
                f"project_op: {cell_type} edge {edge} must be undecided, "
                f"got an edge fixed to op {self._op[cell_type][edge]}"
            )
        if edge in self._dropped(cell_type):
            raise ValueError(
                f"project_op: {cell_type} edge {edge} must be undecided, got one its node dropped"
            )
        self._op[cell_type][edge] = op

    def project_edges(self, cell_type: str, node: int, keep: Iterable[int]) -> None:
        """Fix a node to two of its incoming edges; the weights of the others become 0.

        Raises ValueError if there is no such cell type, if the node has nothing to decide or is
        decided already, or if keep is not two different edges into it.
        """
        self._check_cell_type("project_edges", cell_type)
        nodes = self._topology_nodes()
        if node not in nodes:
            raise ValueError(
                f"project_edges: node must be one with more than two inputs, {list(nodes)}, "
                f"got {node}"
            )
        if node in self._kept[cell_type]:
            raise ValueError(
                f"project_edges: {cell_type} node {node} must be undecided, "
                f"got one that keeps {list(self._kept[cell_type][node])}"
            )
        kept = tuple(sorted(int(edge) for edge in keep))
        incoming = self._space.node_edges[node]
        if len(kept) != _KEPT_INPUTS or len(set(kept)) != len(kept) or not set(kept) <= {*incoming}:
            raise ValueError(
                f"project_edges: keep must be two different edges of {list(incoming)}, "
                f"got {list(kept)}"
            )
        self._kept[cell_type][node] = kept

    def undecided_edges(self, cell_type: str) -> list[int]:
        """Edges whose operation is open, in order; not those that their node dropped."""
        self._check_cell_type("undecided_edges", cell_type)
        closed = self._dropped(cell_type) | self._op[cell_type].keys()
        return [edge for edge in range(self._space.num_edges) if edge not in closed]

    def decided_op(self, cell_type: str, edge: int) -> int | None:
        """The operation that an edge is fixed to, None where that is open; also of an edge that its
        node has dropped since.
        """
        self._check_cell_type("decided_op", cell_type)
        return self._op[cell_type].get(edge)

    def undecided_nodes(self, cell_type: str) -> list[int]:
        """Nodes whose two inputs are open, in order."""
        self._check_cell_type("undecided_nodes", cell_type)
        return [node for node in self._topology_nodes() if node not in self._kept[cell_type]]

    def apply(self, cell_type: str, weights: Tensor) -> Tensor:
        """weights [edges, ops] with the decided rows replaced by constants; others untouched."""
        self._check_cell_type("apply", cell_type)
        dropped = self._dropped(cell_type)
        fixed = {edge: op for edge, op in self._op[cell_type].items() if edge not in dropped}
        if not fixed and not dropped:
            return weights
        decided = torch.zeros(weights.shape[0], 1, dtype=torch.bool)
        decided[[*fixed, *dropped]] = True
        rows = torch.zeros(weights.shape, dtype=weights.dtype)
        rows[[*fixed], [*fixed.values()]] = 1.0
        return torch.where(decided.to(weights.device), rows.to(weights.device), weights)

    def state_dict(self) -> dict[str, Any]:
        """All decisions as dicts, lists, ints and strings (loadable with weights_only=True)."""
        return {
            "space": self._space.name,
            "ops": {name: dict(ops) for name, ops in self._op.items()},
            "edges": {
                name: {node: list(kept) for node, kept in nodes.items()}
                for name, nodes in self._kept.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all decisions by those of `state_dict()`; unchanged if that raises ValueError."""
        if not {"space", "ops", "edges"} <= {*state}:
            raise ValueError(
                f"Projection: state must have space, ops, edges, got {', '.join(state)}"
            )
        if state["space"] != self._space.name:
            raise ValueError(
                f"Projection: state must belong to space {self._space.name!r}, "
                f"got {state['space']!r}"
            )
        loaded = Projection(self._space)
        for cell_type, ops in state["ops"].items():
            for edge, op in ops.items():
                loaded.project_op(cell_type, edge, op)
        for cell_type, nodes in state["edges"].items():
            for node, kept in nodes.items():
                loaded.project_edges(cell_type, node, kept)
        self._op, self._kept = loaded._op, loaded._kept

    def _topology_nodes(self) -> tuple[int, ...]:
        if not self._space.select_topology:
            return ()
        return tuple(n for n, edges in self._space.node_edges.items() if len(edges) > _KEPT_INPUTS)

    def _dropped(self, cell_type: str) -> set[int]:
        return {
            edge
            for node, kept in self._kept[cell_type].items()
            for edge in self._space.node_edges[node]
            if edge not in kept
        }

    def _check_cell_type(self, name: str, cell_type: str) -> None:
        if cell_type not in self._space.cell_types:
            raise ValueError(
                f"{name}: cell_type must be one of {', '.join(self._space.cell_types)}, "
                f"got {cell_type!r}"
            )

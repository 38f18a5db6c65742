# SPDX-License-Identifier: Apache-2.0
"""The search cell of NAS-Bench-201 with the name and signature of its code."""

from __future__ import annotations

from collections.abc import Sequence

from darts_fast.nn import nasbench201 as fused

__all__ = ["NAS201SearchCell"]


def edges_of(max_nodes: int) -> list[tuple[int, int]]:
    """(from, to) of every edge: 1<-0, 2<-0, 2<-1, 3<-0, ..."""
    return [(source, node) for node in range(1, max_nodes) for source in range(node)]


class NAS201SearchCell(fused.NAS201SearchCell):
    """All operations `op_names` on every edge between `max_nodes` nodes: forward(inputs, weightss
    [edges, ops]).

    Raises ValueError unless C_in = C_out and stride = 1, as in every search of the benchmark.
    """

    def __init__(
        self,
        C_in: int,
        C_out: int,
        stride: int,
        max_nodes: int,
        op_names: Sequence[str],
        affine: bool = False,
        track_running_stats: bool = True,
    ) -> None:
        if C_in != C_out or stride != 1:
            raise ValueError(
                "NAS201SearchCell: C_in must be C_out and stride 1, "
                f"got C_in={C_in}, C_out={C_out}, stride={stride}"
            )
        pairs = edges_of(max_nodes)
        super().__init__(
            C_in,
            pairs,
            [op_names] * len(pairs),
            zero="multiply",
            affine=affine,
            track_running_stats=track_running_stats,
        )
        self.op_names = list(op_names)
        self.max_nodes = max_nodes
        self.in_dim, self.out_dim = C_in, C_out
        self.edge_keys = list(self.edges)
        self.edge2index = {key: index for index, key in enumerate(self.edge_keys)}
        self.num_edges = len(pairs)

    def extra_repr(self) -> str:
        return f"info :: {self.max_nodes} nodes, inC={self.in_dim}, outC={self.out_dim}"

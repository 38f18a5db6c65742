# SPDX-License-Identifier: Apache-2.0
"""The search cell of NAS-Bench-201 with the name and signatures of its code.

Sources of its ways to run: all operations (DARTS, Liu et al., ICLR 2019), one drawn by a Gumbel
softmax (GDAS, Dong and Yang, CVPR 2019), one drawn uniformly (SETN, Dong and Yang, ICCV 2019).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from darts_fast.compat.nasbench201.cell_operations import OPS
from darts_fast.nn import nasbench201 as fused
from darts_fast.nn.mixed_op import check_weights, weighted_sum
from darts_fast.nn.partial_channels import channel_shuffle

__all__ = ["NAS201SearchCell", "NAS201SearchCell_PartialChannel", "channel_shuffle"]


class _Cells(Protocol):
    """What `forward_dynamic` needs of a `Structure`."""

    nodes: Any


def edges_of(max_nodes: int) -> list[tuple[int, int]]:
    """(from, to) of every edge: 1<-0, 2<-0, 2<-1, 3<-0, ..."""
    return [(source, node) for node in range(1, max_nodes) for source in range(node)]


class NAS201SearchCell(fused.NAS201SearchCell):
    """All operations `op_names` on every edge between `max_nodes` nodes: forward(inputs, weightss
    [edges, ops]).

    The operations that read the input, node 0, have the stride. Raises ValueError if C_in is not
    C_out and some edge reads another node, which has C_out channels already.
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
        if C_in != C_out and max_nodes > 2:
            raise ValueError(
                "NAS201SearchCell: with more than 2 nodes C_in must be C_out, "
                f"got C_in={C_in}, C_out={C_out}, max_nodes={max_nodes}"
            )
        self._stride = stride
        self.op_names = list(op_names)
        self.max_nodes = max_nodes
        self.in_dim, self.out_dim = C_in, C_out
        pairs = edges_of(max_nodes)
        super().__init__(
            C_in,
            pairs,
            [op_names] * len(pairs),
            zero="multiply",
            affine=affine,
            track_running_stats=track_running_stats,
        )
        self.edge_keys = list(self.edges)
        self.edge2index = {key: index for index, key in enumerate(self.edge_keys)}
        self.num_edges = len(pairs)

    def _operation(
        self, name: str, C: int, source: int, affine: bool, track_running_stats: bool
    ) -> nn.Module:
        stride = 1 if source else self._stride
        return OPS[name](C, self.out_dim, stride, affine, track_running_stats)

    def forward_joint(self, inputs: Tensor, weightss: Tensor) -> Tensor:
        """As `forward`."""
        out: Tensor = self(inputs, weightss)
        return out

    def forward_gdas(self, inputs: Tensor, hardwts: Tensor, index: Tensor) -> Tensor:
        """On every edge the one operation `index` [edges] runs, times its weight in `hardwts`
        [edges, ops]; the weights of the others are added as they are, for their gradients (GDAS).
        """
        check_weights("NAS201SearchCell", hardwts, self._shape)
        chosen = [int(op) for op in index]

        def run(edge: int, ops: nn.ModuleList, x: Tensor) -> Tensor:
            row, op = hardwts[edge], chosen[edge]
            mixed: Tensor = row[op] * ops[op](x)
            return mixed + torch.cat([row[:op], row[op + 1 :]]).sum()

        return self._through(inputs, run)

    def forward_select(self, inputs: Tensor, weightss: Tensor) -> Tensor:
        """On every edge the operation with the largest weight in [edges, ops], times 1."""
        check_weights("NAS201SearchCell", weightss, self._shape)
        best = weightss.argmax(-1).tolist()
        return self._through(inputs, lambda edge, ops, x: ops[best[edge]](x))

    def forward_urs(self, inputs: Tensor) -> Tensor:
        """On every edge a uniformly drawn operation, from Python's `random`, times 1; the draws
        into a node are repeated while all of them are `none` (SETN).

        Raises ValueError if there is nothing but `none` to draw.
        """
        if all(name == "none" for name in self.op_names):
            raise ValueError(
                "NAS201SearchCell: op_names must have more than none, "
                f"got {', '.join(self.op_names)}"
            )
        drawn: dict[int, nn.Module] = {}
        for incoming in self._incoming.values():
            while True:
                for edge, _ in incoming:
                    drawn[edge] = random.choice(list(self._candidates(edge)))
                if any(not getattr(drawn[edge], "is_zero", False) for edge, _ in incoming):
                    break
        return self._through(inputs, lambda edge, ops, x: drawn[edge](x))

    def forward_dynamic(self, inputs: Tensor, structure: _Cells) -> Tensor:
        """The operations of one architecture, `structure.nodes`: for every node after the input its
        (operation, node it reads) pairs.
        """
        states = [inputs]
        for node, pairs in zip(self._incoming, structure.nodes, strict=True):
            terms = (
                self._candidates(self.edge2index[f"{node}<-{source}"])[self.op_names.index(name)](
                    states[source]
                )
                for name, source in pairs
            )
            states.append(functools.reduce(torch.add, terms))
        return states[-1]

    def _candidates(self, edge: int) -> nn.ModuleList:
        return cast(nn.ModuleList, self.edges[self.edge_keys[edge]])

    def _through(
        self, inputs: Tensor, run: Callable[[int, nn.ModuleList, Tensor], Tensor]
    ) -> Tensor:
        """The last node where edge number e, with candidates ops, gives run(e, ops, state)."""
        states = [inputs]
        for incoming in self._incoming.values():
            terms = (run(edge, self._candidates(edge), states[source]) for edge, source in incoming)
            states.append(functools.reduce(torch.add, terms))
        return states[-1]

    def extra_repr(self) -> str:
        return f"info :: {self.max_nodes} nodes, inC={self.in_dim}, outC={self.out_dim}"


class NAS201SearchCell_PartialChannel(NAS201SearchCell):  # noqa: N801
    """The first 1/k of the channels of an edge are mixed, the others pass by, then all are shuffled
    (PC-DARTS, Xu et al., ICLR 2020, section 3.2).

    Raises ValueError unless C_in = C_out, a multiple of k, and stride = 1.
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
        k: int = 4,
    ) -> None:
        if C_in != C_out or stride != 1 or k < 1 or C_in % k:
            raise ValueError(
                "NAS201SearchCell_PartialChannel: C_in must be C_out, a multiple of k, and stride "
                f"1, got C_in={C_in}, C_out={C_out}, stride={stride}, k={k}"
            )
        self.k = k
        super().__init__(
            C_in // k, C_out // k, stride, max_nodes, op_names, affine, track_running_stats
        )
        self.in_dim, self.out_dim = C_in, C_out

    def MixedOp(self, x: Tensor, ops: nn.ModuleList, weights: Tensor) -> Tensor:  # noqa: N802
        """One edge: x [N, C, H, W], weights [ops] -> [N, C, H, W]."""
        own = x.shape[1] // self.k
        mixed = weighted_sum(list(ops), [x[:, :own]] * len(ops), weights, self.zero)
        return channel_shuffle(torch.cat([mixed, x[:, own:]], 1), self.k)

    def forward(self, inputs: Tensor, weightss: Tensor) -> Tensor:
        """inputs [N, C, H, W], weightss [edges, ops] -> [N, C, H, W]."""
        check_weights("NAS201SearchCell_PartialChannel", weightss, self._shape)
        return self._through(inputs, lambda edge, ops, x: self.MixedOp(x, ops, weightss[edge]))

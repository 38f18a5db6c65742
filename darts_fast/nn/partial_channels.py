# SPDX-License-Identifier: Apache-2.0
"""The supernet of PC-DARTS (Xu et al., ICLR 2020, arXiv 1907.05737) on the fused operations.

Partial channels (section 3.2): of the channels of an edge the first 1/k go through the mixed
operation, the others bypass it (at stride 2 by a 2x2 max pool); the two are joined and their
channels shuffled. Edge normalisation (section 3.3): the edges into a node are weighted with a
softmax of betas. Names of attributes and of the keys of a state_dict are those of the authors'
code, which was not copied; that the first channels are the mixed ones, and the shuffle in k groups,
is as noted of that code.

Joining and shuffling are the same for all edges into a node, and linear, so that they are done once
per node: its mixed operations of one stride are one native call with weights beta * alpha.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from darts_fast.nn.cell import Cell
from darts_fast.nn.edge_normalisation import EdgeNormalised
from darts_fast.nn.fused_cell import native_plan, run_cell, run_preprocess, run_stem
from darts_fast.nn.mixed_op import MixedOp, check_weights, weighted_sum
from darts_fast.nn.network import Network
from darts_fast.nn.operations import drop_path
from darts_fast.nn.plan import CellPlan, has_hooks, plan_cell

__all__ = ["PartialCell", "PartialMixedOp", "PartialNetwork", "channel_shuffle"]


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """x [N, C, H, W] with channels taken in turns from `groups` consecutive groups of equal size
    (ShuffleNet, Zhang et al., CVPR 2018, section 3.1).
    """
    n, channels, height, width = x.shape
    parts = x.reshape(n, groups, channels // groups, height, width)
    return parts.transpose(1, 2).reshape(n, channels, height, width)


class PartialMixedOp(MixedOp):
    """One edge: a `MixedOp` of C // k channels beside the bypass `mp` of the others.

    Raises ValueError unless k divides C.
    """

    def __init__(
        self, C: int, stride: int, primitives: Sequence[str], *, zero: str = "multiply", k: int = 4
    ) -> None:
        if k < 1 or C % k:
            raise ValueError(f"PartialMixedOp: k must divide the channels, got k={k} for {C}")
        super().__init__(C // k, stride, primitives, zero=zero)
        self.k = k
        self.mp = nn.MaxPool2d(2, 2)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x [N, C, H, W], weights [ops] -> [N, C, H/stride, W/stride]."""
        own = x.shape[1] // self.k
        mixed = super().forward(x[:, :own], weights)
        return channel_shuffle(torch.cat([mixed, self.bypass(x[:, own:])], 1), self.k)

    def bypass(self, x: Tensor) -> Tensor:
        """The channels that are not mixed, at the size of the output."""
        out: Tensor = x if self.stride == 1 else self.mp(x)
        return out


# See `darts_fast.nn.cell`.
_FORWARD = PartialMixedOp.forward


class PartialCell(Cell):
    """A `Cell` of `PartialMixedOp`s, whose forward takes a weight per edge as well."""

    def __init__(self, *arguments: Any, k: int = 4, **named: Any) -> None:
        self._k = k
        super().__init__(*arguments, **named)

    def _edge(self, C: int, stride: int, primitives: Sequence[str]) -> MixedOp:
        return PartialMixedOp(C, stride, primitives, zero=self.zero, k=self._k)

    def forward(  # type: ignore[override]
        self, s0: Tensor, s1: Tensor, weights: Tensor, weights2: Tensor, drop_prob: float = 0.0
    ) -> Tensor:
        """Two inputs, weights [edges, ops] and weights2 [edges] -> [N, multiplier * C, H', W'].

        drop_prob > 0 applies drop-path to the output of every edge, in training only.
        """
        check_weights("PartialCell", weights, (len(self._ops), len(self.primitives[0])))
        check_weights("PartialCell edges", weights2, (len(self._ops),))
        states = [run_preprocess(self.preprocess0, s0), run_preprocess(self.preprocess1, s1)]
        drop_prob = drop_prob if self.training else 0.0
        first = 0
        for count in range(2, self._steps + 2):
            rows = slice(first, first + count)
            states.append(self._sum(states, first, weights[rows], weights2[rows], drop_prob))
            first += count
        return torch.cat(states[-self._multiplier :], dim=1)

    def _sum(
        self, states: list[Tensor], first: int, weights: Tensor, weights2: Tensor, drop_prob: float
    ) -> Tensor:
        """The node whose edges come from all states so far and are numbered from `first`."""
        edges = [cast(PartialMixedOp, self._ops[first + i]) for i in range(len(states))]
        own = any(has_hooks(edge) or type(edge).forward is not _FORWARD for edge in edges)
        if drop_prob > 0.0 or own:
            outs = (
                weights2[i] * drop_path(edge(x, weights[i]), drop_prob)
                for i, (edge, x) in enumerate(zip(edges, states, strict=True))
            )
            return functools.reduce(torch.add, outs)
        mixed_channels = states[0].shape[1] // self._k
        both = weights2[:, None] * weights
        parts = []
        # Edges of one stride are one native call; those from the two inputs come first.
        for some in (slice(0, 2), slice(2, None)) if self.reduction else (slice(None),):
            if edges[some]:
                mixed = [x[:, :mixed_channels] for x in states[some]]
                candidates = [edge._ops for edge in edges[some]]
                first_edge = edges[some][0]
                parts.append(
                    mixed_sum(
                        first_edge, candidates, mixed, both[some], self.zero, first_edge.stride
                    )
                )
        rest = [edge.bypass(x[:, mixed_channels:]) for edge, x in zip(edges, states, strict=True)]
        joined = [functools.reduce(torch.add, parts), bypass_sum(rest, weights2)]
        return channel_shuffle(torch.cat(joined, 1), self._k)


def mixed_sum(
    owner: nn.Module,
    edges: Sequence[nn.ModuleList],
    inputs: Sequence[Tensor],
    weights: Tensor,
    zero: str,
    stride: int,
) -> Tensor:
    """Sum over edges of one stride of their mixed operations, as one native call.

    Args: owner, whose plan it is: no module below the edges; edges, the candidates of each; inputs,
    one per edge, [N, C, H, W]; weights [edges, ops]; zero, see `mixed_op`.
    """

    def plan() -> CellPlan | None:
        ends = [(i, len(edges), list(candidates)) for i, candidates in enumerate(edges)]
        return plan_cell(ends, inputs=len(edges), nodes=1, multiplier=1)

    root = edges[0] if len(edges) == 1 else _together(owner, edges)
    found = native_plan(owner, root, plan, inputs[0], weights)
    if found is not None:
        return run_cell(found, inputs, weights, zero)
    ops = [op for candidates in edges for op in candidates]
    repeated = [x for x, candidates in zip(inputs, edges, strict=True) for _ in candidates]
    return weighted_sum(ops, repeated, weights.flatten(), zero, stride)


def bypass_sum(maps: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Sum over edges of the channels that are not mixed, times the edge's share."""
    terms: Iterator[Tensor] = (share * x for share, x in zip(shares, maps, strict=True))
    return functools.reduce(torch.add, terms)


def _together(owner: nn.Module, edges: Sequence[nn.ModuleList]) -> nn.ModuleList:
    """One module, the same for the same edges, that holds them and belongs to no network."""
    kept = owner.__dict__.get("_with")
    if kept is None or list(kept) != list(edges):
        kept = nn.ModuleList(edges)
        owner.__dict__["_with"] = kept
    return cast(nn.ModuleList, kept)


class PartialNetwork(EdgeNormalised, Network):
    """`Network` of `PartialCell`s with the edge parameters `betas_normal` and `betas_reduce`.

    Args: as `Network`; k, the share 1/k of mixed channels, which must divide C. The weights that
    forward takes are those of the operations; the edges have their own (`edge_importance`).
    """

    def __init__(
        self, C: int, num_classes: int, layers: int, *arguments: Any, k: int = 4, **named: Any
    ) -> None:
        self._k = k
        super().__init__(C, num_classes, layers, *arguments, **named)

    def _initialize_alphas(self) -> None:
        super()._initialize_alphas()
        self._register_betas({"normal": "betas_normal", "reduce": "betas_reduce"})

    def _cell(self, *arguments: Any, **named: Any) -> Cell:
        return PartialCell(*arguments, k=self._k, **named)

    def _fresh(self, *arguments: Any, **named: Any) -> Network:
        return PartialNetwork(*arguments, k=self._k, **named)

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the first cell reads."""
        s0 = run_stem(self.stem, x)
        return s0, s0

    def _features(self, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        importance = self.edge_importance()
        s0, s1 = self._inputs(x)
        for cell in self.cells:
            name = "reduce" if cell.reduction else "normal"
            edges = importance[name].to(s1.device)
            s0, s1 = s1, cell(s0, s1, weights[name], edges, self.drop_path_prob)
        return s1

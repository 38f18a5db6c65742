# SPDX-License-Identifier: Apache-2.0
"""The search cell of the DARTS spaces (Liu et al., ICLR 2019, section 2.1)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from darts_fast.nn.fused_cell import native_plan, run_cell, run_preprocess
from darts_fast.nn.mixed_op import MixedOp, check_weights, check_zero_rule, weighted_sum
from darts_fast.nn.operations import FactorizedReduce, ReLUConvBN, drop_path
from darts_fast.nn.plan import CellPlan, has_hooks, plan_cell

# What the cell computes for its edges; one that was put in its place later it does not know.
_FORWARD = MixedOp.forward


class Cell(nn.Module):
    """A directed acyclic graph of `steps` nodes over two inputs, every edge a `MixedOp`.

    States 0 and 1 are the preprocessed outputs of the two previous cells, states 2 to steps + 1
    the nodes: node i is the sum over all earlier states j of the mixed operation on edge (j, i).
    Edges are numbered node by node, and within a node by j. The output concatenates the last
    `multiplier` nodes. In a reduction cell the edges that leave the two inputs have stride 2.

    Args: C_prev_prev, C_prev channels of the inputs; C channels of every state; reduction_prev,
    whether the previous cell was a reduction, so that the older input is twice as large;
    primitives, the names of the candidates of each edge; zero, the rule for weights of 0 (see
    `MixedOp`). Raises ValueError if primitives do not fit steps, or for a bad steps or multiplier.
    """

    def __init__(
        self,
        steps: int,
        multiplier: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        *,
        primitives: Sequence[Sequence[str]],
        zero: str,
    ) -> None:
        super().__init__()
        if not 1 <= multiplier <= steps:
            raise ValueError(
                f"Cell: multiplier must be 1 to steps, got multiplier={multiplier}, steps={steps}"
            )
        num_edges = steps * (steps + 3) // 2
        if len(primitives) != num_edges:
            raise ValueError(
                f"Cell: primitives must have one list per edge, "
                f"got {len(primitives)} lists for {num_edges} edges"
            )
        self.reduction = reduction
        self.primitives = tuple(tuple(names) for names in primitives)
        self.zero = check_zero_rule("Cell", zero)
        self._steps = steps
        self._multiplier = multiplier
        self.preprocess0: nn.Module = (
            FactorizedReduce(C_prev_prev, C, affine=False)
            if reduction_prev
            else ReLUConvBN(C_prev_prev, C, 1, 1, 0, affine=False)
        )
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0, affine=False)
        # `_bns` is empty; the originals' module tree has it.
        self._ops = nn.ModuleList()
        self._bns = nn.ModuleList()
        for node in range(2, steps + 2):
            for state in range(node):
                stride = 2 if reduction and state < 2 else 1
                names = self.primitives[len(self._ops)]
                self._ops.append(self._edge(C, stride, names))

    def _edge(self, C: int, stride: int, primitives: Sequence[str]) -> MixedOp:
        """One edge of this cell."""
        return MixedOp(C, stride, primitives, zero=self.zero)

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, drop_prob: float = 0.0) -> Tensor:
        """Two inputs and weights [edges, ops] -> [N, multiplier * C, H', W'].

        drop_prob > 0 applies drop-path to the output of every edge, in training only.
        """
        check_weights("Cell", weights, (len(self._ops), len(self.primitives[0])))
        states = [run_preprocess(self.preprocess0, s0), run_preprocess(self.preprocess1, s1)]
        drop_prob = drop_prob if self.training else 0.0
        if drop_prob == 0.0:
            plan = native_plan(self, self._ops, self._plan, states[0], weights)
            if plan is not None:
                return run_cell(plan, states, weights, self.zero)
        for node in range(2, self._steps + 2):
            states.append(self._node(states, node, weights, drop_prob))
        return torch.cat(states[-self._multiplier :], dim=1)

    def _plan(self) -> CellPlan | None:
        if not all(type(edge).forward is _FORWARD for edge in self._ops):
            return None
        ends = [(state, node) for node in range(2, self._steps + 2) for state in range(node)]
        edges = [
            (*end, list(cast(MixedOp, edge)._ops))
            for end, edge in zip(ends, self._ops, strict=True)
        ]
        return plan_cell(edges, inputs=2, nodes=self._steps, multiplier=self._multiplier)

    def _node(self, states: list[Tensor], node: int, weights: Tensor, drop_prob: float) -> Tensor:
        """Sum of the edges into `node`, in the order of the states; states has node entries."""
        first = (node - 2) * (node + 1) // 2
        edges = [cast(MixedOp, self._ops[first + state]) for state in range(node)]
        own = any(has_hooks(edge) or type(edge).forward is not _FORWARD for edge in edges)
        if drop_prob > 0.0 or own:
            outs = (
                drop_path(edge(state, weights[first + i]), drop_prob)
                for i, (edge, state) in enumerate(zip(edges, states, strict=True))
            )
            return functools.reduce(torch.add, outs)
        ops = [op for edge in edges for op in edge._ops]
        inputs = [x for edge, x in zip(edges, states, strict=True) for _ in edge._ops]
        stride = edges[0].stride
        return weighted_sum(ops, inputs, weights[first : first + node].flatten(), self.zero, stride)

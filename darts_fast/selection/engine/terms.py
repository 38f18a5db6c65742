# SPDX-License-Identifier: Apache-2.0
"""`mixed_cell` for any selection of a cell's operations, states and groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from darts_fast import _ops
from darts_fast.nn.fused_cell import norm_arguments
from darts_fast.nn.operations import Noise
from darts_fast.nn.plan import CellPlan
from darts_fast.reference import CELL_KINDS, PRECISION_FULL

# In place of an operation's index: the source as it is, with weight 1.
COPY = -1
_IDENTITY, _NONE = CELL_KINDS.index("identity"), CELL_KINDS.index("none")


class Term(NamedTuple):
    """One summand of a node; states are numbered as in the call, first its inputs."""

    source: int
    node: int
    op: int
    """Index in the cell's plan, or `COPY`."""


@dataclass
class Operations:
    """The convolutions and norms of every operation of a plan.

    Attributes:
        drawn: operations that draw their output and read nothing but a shape; the plan has them as
            "none". A term of one has the drawn map as its source, which the operation's weight
            multiplies.
    """

    plan: CellPlan
    drawn: Mapping[int, Noise] = field(default_factory=dict)
    convolutions: list[list[nn.Conv2d]] = field(init=False)
    norms: list[list[nn.BatchNorm2d | None]] = field(init=False)

    def __post_init__(self) -> None:
        self.convolutions = [[] for _ in range(self.plan.width)]
        self.norms = [[] for _ in range(self.plan.width)]
        for k, conv in zip(self.plan.convolution_ops, self.plan.convolutions, strict=True):
            self.convolutions[k].append(conv)
        for k, norm in zip(self.plan.norm_ops, self.plan.norms, strict=True):
            self.norms[k].append(norm)

    def idle(self, width: int) -> set[tuple[int, int]]:
        """(edge, operation) of those that add nothing; width, the operations of an edge."""
        return {
            divmod(k, width)
            for k, kind in enumerate(self.plan.ops[2::5])
            if kind == _NONE and k not in self.drawn
        }

    def whole(self) -> list[Term]:
        """All operations where the cell has them."""
        ops = self.plan.ops
        return [Term(ops[5 * k], ops[5 * k + 1], k) for k in range(self.plan.width)]


def run_terms(
    operations: Operations,
    terms: Sequence[Term],
    inputs: Sequence[Tensor],
    weights: Tensor,
    *,
    skip: bool,
    nodes: int,
    multiplier: int,
    stride: int,
) -> Tensor:
    """Nodes as sums of terms, for all groups in one call; nothing else in the network changes.

    Args: terms, at least one; inputs [G * N, C, H, W]; weights [G, K] of all operations of the
    plan; skip, whether an operation of weight 0 is left out; nodes, multiplier and stride, see
    `functional.mixed_cell`. Returns the last `multiplier` nodes [G * N, multiplier * C, H', W'].
    """
    ops: list[int] = []
    convolutions: list[Tensor] = []
    norms: list[nn.BatchNorm2d | None] = []
    for source, node, k in terms:
        if k == COPY or k in operations.drawn:
            ops += (source, node, _IDENTITY, 0, 0)
            continue
        ops += (source, node, *operations.plan.ops[5 * k + 2 : 5 * k + 5])
        # Not by attribute: Module.__getattr__ is slow, and a cell has hundreds of modules.
        convolutions += [
            cast(Tensor, conv._parameters["weight"]) for conv in operations.convolutions[k]
        ]
        norms += operations.norms[k]
    groups = weights.shape[0]
    table = torch.cat([weights, weights.new_ones(groups, 1)], dim=1)
    table = table[:, [k for _, _, k in terms]]  # COPY is the last column
    active = table != 0 if skip else None
    given = norm_arguments(norms, table)
    output, *_ = _ops.call_mixed_cell(
        [x.contiguous(memory_format=torch.channels_last) for x in inputs],
        table,
        convolutions,
        given.gammas,
        given.betas,
        given.running_means,
        given.running_vars,
        ops,
        given.kinds,
        given.eps,
        nodes,
        multiplier,
        stride,
        groups,
        0,
        active,
        PRECISION_FULL,
        False,
    )
    return output

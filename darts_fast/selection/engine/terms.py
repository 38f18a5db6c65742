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
from darts_fast.selection.engine.states import Weights

# In place of an operation's index: the source as it is.
COPY = -1
# In place of a weight's index: 1.
ONE = -1
_IDENTITY, _NONE = CELL_KINDS.index("identity"), CELL_KINDS.index("none")


class Term(NamedTuple):
    """One summand of a node; states are numbered as in the call, first its inputs."""

    source: int
    node: int
    op: int
    """Index in the cell's plan, or `COPY`."""
    weight: int
    """Index of what the summand is multiplied by among the weights of all operations, or `ONE`."""


@dataclass
class Operations:
    """The convolutions and norms of every operation of a plan.

    Attributes:
        drawn: operations that draw their output and read nothing but a shape; the plan has them as
            "none".
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
        return {divmod(k, width) for k in range(self.plan.width) if self.adds_nothing(k)}

    def adds_nothing(self, k: int) -> bool:
        """Whatever its weight."""
        return self.plan.ops[5 * k + 2] == _NONE and k not in self.drawn

    def is_identity(self, k: int) -> bool:
        return self.plan.ops[5 * k + 2] == _IDENTITY

    def whole(self) -> list[Term]:
        """All operations where the cell has them."""
        ops = self.plan.ops
        return [Term(ops[5 * k], ops[5 * k + 1], k, k) for k in range(self.plan.width)]


def run_terms(
    operations: Operations,
    terms: Sequence[Term],
    inputs: Sequence[Tensor],
    weights: Weights,
    *,
    skip: bool,
    nodes: int,
    multiplier: int,
    stride: int,
    shared: int = 0,
) -> Tensor:
    """Nodes as sums of terms, for all groups in one call; nothing else in the network changes.

    It can be differentiated, but for shared inputs.

    Args: terms, at least one; inputs [G * N, C, H, W], the first `shared` ones [N, C, H, W];
    weights of all operations of the plan; skip, whether a term of weight 0 is left out;
    nodes, multiplier, stride and shared, see `functional.mixed_cell`. Returns the last `multiplier`
    nodes [G * N, multiplier * C, H', W'].
    """
    ops: list[int] = []
    convolutions: list[Tensor] = []
    norms: list[nn.BatchNorm2d | None] = []
    for source, node, k, _ in terms:
        if k == COPY:
            ops += (source, node, _IDENTITY, 0, 0)
            continue
        ops += (source, node, *operations.plan.ops[5 * k + 2 : 5 * k + 5])
        # Not by attribute: Module.__getattr__ is slow, and a cell has hundreds of modules.
        convolutions += [
            cast(Tensor, conv._parameters["weight"]) for conv in operations.convolutions[k]
        ]
        norms += operations.norms[k]
    groups, values = len(weights), weights.values.flatten(1)
    # ONE is the last column.
    columns = torch.tensor([term.weight % (values.shape[1] + 1) for term in terms])
    table = torch.cat([values, values.new_ones(groups, 1)], dim=1)
    table = table.index_select(1, columns.to(table.device, non_blocking=True))
    active = None
    if skip:
        ones = torch.ones(groups, 1, dtype=torch.bool)
        active = torch.cat([weights.nonzero(), ones], dim=1).index_select(1, columns)
    given = norm_arguments(norms, table)
    states = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    leaves = (table, *states, *convolutions, *given.gammas, *given.betas)
    save = torch.is_grad_enabled() and any(value.requires_grad for value in leaves)
    output: Tensor
    output, *_ = _ops.mixed_cell(
        states,
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
        shared,
        active,
        PRECISION_FULL,
        save,
    )
    return output

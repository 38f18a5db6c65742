# SPDX-License-Identifier: Apache-2.0
"""The supernet of DARTS with the names and signatures of its own code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from darts_fast import nn as fused
from darts_fast.compat._alphas import HiddenAlphas
from darts_fast.compat.darts.genotypes import PRIMITIVES, Genotype
from darts_fast.compat.darts.operations import OPS, FactorizedReduce, ReLUConvBN

__all__ = [
    "OPS",
    "PRIMITIVES",
    "Cell",
    "FactorizedReduce",
    "Genotype",
    "MixedOp",
    "Network",
    "ReLUConvBN",
]


class MixedOp(fused.MixedOp):
    """The eight candidates of one edge: forward(x [N, C, H, W], weights [8])."""

    def __init__(self, C: int, stride: int) -> None:
        super().__init__(C, stride, PRIMITIVES)


class Cell(fused.Cell):
    """A search cell with the eight candidates on every edge: forward(s0, s1, weights)."""

    def __init__(
        self,
        steps: int,
        multiplier: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
    ) -> None:
        super().__init__(
            *(steps, multiplier, C_prev_prev, C_prev, C, reduction, reduction_prev),
            primitives=[PRIMITIVES] * (steps * (steps + 3) // 2),
            zero="multiply",
        )

    def _edge(self, C: int, stride: int, primitives: Sequence[str]) -> MixedOp:
        return MixedOp(C, stride)


class Network(HiddenAlphas, fused.Network):
    """The supernet; reductions at 1/3 and 2/3 of the depth, all operations of every edge run.

    `drop_path_prob`, which the original does not have, is 0.
    """

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        criterion: nn.Module,
        steps: int = 4,
        multiplier: int = 4,
        stem_multiplier: int = 3,
    ) -> None:
        super().__init__(C, num_classes, layers, criterion, steps, multiplier, stem_multiplier)

    def _cell(self, *arguments: Any, **named: Any) -> Cell:
        return Cell(*arguments)

    def _fresh(self, *arguments: Any, **named: Any) -> Network:
        return Network(*arguments)

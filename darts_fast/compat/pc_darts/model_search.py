# SPDX-License-Identifier: Apache-2.0
"""The supernet of PC-DARTS (Xu et al., ICLR 2020, arXiv 1907.05737) with the names of its code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from darts_fast.compat._alphas import HiddenAlphas
from darts_fast.compat.darts.genotypes import PRIMITIVES, Genotype
from darts_fast.nn.partial_channels import (
    PartialCell,
    PartialMixedOp,
    PartialNetwork,
    channel_shuffle,
)

__all__ = ["Cell", "Genotype", "MixedOp", "Network", "channel_shuffle"]


class MixedOp(PartialMixedOp):
    """One edge of which 1/k of the channels are mixed: forward(x [N, C, H, W], weights [8])."""

    def __init__(self, C: int, stride: int, *, k: int = 4) -> None:
        super().__init__(C, stride, PRIMITIVES, k=k)


class Cell(PartialCell):
    """A search cell: forward(s0, s1, weights [14, 8], weights2 [14])."""

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
        k: int = 4,
    ) -> None:
        super().__init__(
            *(steps, multiplier, C_prev_prev, C_prev, C, reduction, reduction_prev),
            primitives=[PRIMITIVES] * (steps * (steps + 3) // 2),
            zero="multiply",
            k=k,
        )

    def _edge(self, C: int, stride: int, primitives: Sequence[str]) -> MixedOp:
        return MixedOp(C, stride, k=self._k)


class Network(HiddenAlphas, PartialNetwork):
    """The supernet; `arch_parameters` are alphas_normal, alphas_reduce, betas_normal, betas_reduce.

    Raises ValueError unless C is a multiple of 4.
    """

    # The share 1/k of channels that is mixed.
    k = 4

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
        sizes = (steps, multiplier, stem_multiplier)
        super().__init__(C, num_classes, layers, criterion, *sizes, k=self.k)

    def _cell(self, *arguments: Any, **named: Any) -> Cell:
        return Cell(*arguments, k=self._k)

    def _fresh(self, *arguments: Any, **named: Any) -> Network:
        return type(self)(*arguments)

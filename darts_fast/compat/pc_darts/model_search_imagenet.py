# SPDX-License-Identifier: Apache-2.0
"""The supernet that PC-DARTS searches on ImageNet (Xu et al., ICLR 2020, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from darts_fast.compat.pc_darts import model_search
from darts_fast.compat.pc_darts.model_search import channel_shuffle
from darts_fast.derive.network import imagenet_stems

__all__ = ["Cell", "MixedOp", "Network", "channel_shuffle"]

SHARE = 2


class MixedOp(model_search.MixedOp):
    """One edge of which half of the channels are mixed."""

    def __init__(self, C: int, stride: int) -> None:
        super().__init__(C, stride, k=SHARE)


class Cell(model_search.Cell):
    """A search cell of such edges: forward(s0, s1, weights [14, 8], weights2 [14])."""

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
        sizes = (C_prev_prev, C_prev, C)
        super().__init__(steps, multiplier, *sizes, reduction, reduction_prev, k=SHARE)

    def _edge(self, C: int, stride: int, primitives: Sequence[str]) -> MixedOp:
        return MixedOp(C, stride)


class Network(model_search.Network):
    """Half of the channels mixed; two stems of stem_multiplier * C channels that divide height and
    width by 8.

    Height and width of the images must be multiples of 32.
    """

    k = SHARE

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
        self._halvings += 3

    def _build_stem(self, channels: int) -> None:
        self.stem0, self.stem1 = imagenet_stems(channels)

    def _cell(self, *arguments: Any, **named: Any) -> Cell:
        # The first cell reads stem0 at twice the size of stem1.
        arguments = (*arguments[:-1], arguments[-1] or len(self.cells) == 0)
        return Cell(*arguments)

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s0 = self.stem0(x)
        return s0, self.stem1(s0)

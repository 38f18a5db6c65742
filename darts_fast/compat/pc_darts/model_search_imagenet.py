# SPDX-License-Identifier: Apache-2.0
"""The supernet that PC-DARTS searches on ImageNet (Xu et al., ICLR 2020, section 4.3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from darts_fast.compat.pc_darts import model_search
from darts_fast.compat.pc_darts.model_search import Cell, MixedOp
from darts_fast.derive.network import imagenet_stems

__all__ = ["Cell", "MixedOp", "Network"]


class Network(model_search.Network):
    """Half of the channels mixed; two stems that divide height and width by 8.

    Height and width of the images must be multiples of 32. `stem_multiplier` is not used: both
    stems have C channels. Raises ValueError for an odd C.
    """

    k = 2

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
        super().__init__(C, num_classes, layers, criterion, steps, multiplier, 1)
        del self.stem
        self.stem0, self.stem1 = imagenet_stems(C)
        self._halvings += 3

    def _cell(self, *arguments: Any, **named: Any) -> Cell:
        # The first cell reads stem0 at twice the size of stem1.
        *sizes, reduction_prev = arguments
        return super()._cell(*sizes, reduction_prev or len(self.cells) == 0)

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s0 = self.stem0(x)
        return s0, self.stem1(s0)

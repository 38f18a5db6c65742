# SPDX-License-Identifier: Apache-2.0
"""confopt: the list of operations is called ops, the weights alphas."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from originals.operations import PRIMITIVES, searched


class OperationChoice(nn.Module):
    def __init__(self, ops: nn.ModuleList, is_reduction_cell: bool = False) -> None:
        super().__init__()
        self.ops = ops
        self.is_reduction_cell = is_reduction_cell

    def forward(self, x, alphas):  # type: ignore[no-untyped-def]
        assert len(alphas) == len(self.ops)
        states = [op(x) * alpha for op, alpha in zip(self.ops, alphas, strict=True)]
        return sum(states)


class Chain(nn.Module):
    """Two choices, the second with stride 2."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.choices = nn.ModuleList(
            OperationChoice(nn.ModuleList(searched(name, C, stride) for name in PRIMITIVES))
            for stride in (1, 2)
        )
        self.alphas = torch.randn(2, len(PRIMITIVES)).requires_grad_()

    def forward(self, x: Tensor) -> Tensor:
        for choice, row in zip(self.choices, self.alphas.softmax(-1), strict=True):
            x = choice(x, row)
        return x

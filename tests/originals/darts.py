# SPDX-License-Identifier: Apache-2.0
"""quark0/darts: MixedOp, Cell and Network of cnn/model_search.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from originals.operations import PRIMITIVES, FactorizedReduce, ReLUConvBN, searched


class MixedOp(nn.Module):
    def __init__(self, C: int, stride: int, names: Sequence[str] = PRIMITIVES) -> None:
        super().__init__()
        self._ops = nn.ModuleList(searched(name, C, stride) for name in names)

    def forward(self, x, weights):  # type: ignore[no-untyped-def]
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))


class Cell(nn.Module):
    mixed_op: Any = MixedOp

    def __init__(
        self,
        steps: int,
        multiplier: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        **edge: Any,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        if reduction_prev:
            self.preprocess0: nn.Module = FactorizedReduce(C_prev_prev, C, affine=False)
        else:
            self.preprocess0 = ReLUConvBN(C_prev_prev, C, 1, 1, 0, affine=False)
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0, affine=False)
        self._steps = steps
        self._multiplier = multiplier
        self._ops = nn.ModuleList()
        self._bns = nn.ModuleList()
        for i in range(steps):
            for j in range(2 + i):
                self._ops.append(self.mixed_op(C, 2 if reduction and j < 2 else 1, **edge))

    def forward(self, s0, s1, weights):  # type: ignore[no-untyped-def]
        return self.join(s0, s1, lambda edge, h: self._ops[edge](h, weights[edge]))

    def join(self, s0, s1, run_edge):  # type: ignore[no-untyped-def]
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self._steps):
            total = sum(run_edge(offset + j, h) for j, h in enumerate(states))
            offset += len(states)
            states.append(total)
        return torch.cat(states[-self._multiplier :], dim=1)


class Network(nn.Module):
    """Alphas are plain tensors, neither parameters nor buffers."""

    cell: Any = Cell

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        criterion: nn.Module | None = None,
        steps: int = 4,
        multiplier: int = 4,
        stem_multiplier: int = 3,
        **edge: Any,
    ) -> None:
        super().__init__()
        self._C = C
        self._num_classes = num_classes
        self._layers = layers
        self._criterion = criterion or nn.CrossEntropyLoss()
        self._steps = steps
        self._multiplier = multiplier
        self._names = edge.get("names", PRIMITIVES)
        width = stem_multiplier * C
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        C_prev_prev, C_prev, C_curr, reduction_prev = width, width, C, False
        self.cells = nn.ModuleList()
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            C_curr *= 2 if reduction else 1
            sizes = (steps, multiplier, C_prev_prev, C_prev, C_curr)
            self.cells.append(self.cell(*sizes, reduction, reduction_prev, **edge))
            reduction_prev = reduction
            C_prev_prev, C_prev = C_prev, multiplier * C_curr
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, num_classes)
        self._initialize_alphas()

    def _initialize_alphas(self) -> None:
        shape = (sum(2 + i for i in range(self._steps)), len(self._names))
        self.alphas_normal = (1e-3 * torch.randn(shape)).requires_grad_()
        self.alphas_reduce = (1e-3 * torch.randn(shape)).requires_grad_()
        self._arch_parameters = [self.alphas_normal, self.alphas_reduce]

    def arch_parameters(self) -> list[Tensor]:
        return self._arch_parameters

    def _loss(self, input: Tensor, target: Tensor) -> Tensor:
        return self._criterion(self(input), target)

    def table(self, reduction: bool) -> Tensor:
        return functional.softmax(self.alphas_reduce if reduction else self.alphas_normal, dim=-1)

    def run_cell(self, cell: nn.Module, s0: Tensor, s1: Tensor) -> Tensor:
        return cell(s0, s1, self.table(cell.reduction))

    def forward(self, input):  # type: ignore[no-untyped-def]
        s0 = s1 = self.stem(input)
        for cell in self.cells:
            s0, s1 = s1, self.run_cell(cell, s0, s1)
        out = self.global_pooling(s1)
        return self.classifier(out.view(out.size(0), -1))

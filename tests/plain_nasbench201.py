# SPDX-License-Identifier: Apache-2.0
"""The NAS-Bench-201 supernet as its code builds it, in plain modules."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

import eager_supernets
import torch
from plain_networks import Trained
from torch import Tensor, nn


class PlainBlock(nn.Module):
    """The residual block, as the original builds it."""

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()

        def conv(first: int, second: int, stride: int) -> nn.Module:
            chain = eager_supernets.ReLUConvBN(first, second, 3, affine=True)
            chain.op[1].stride = (stride, stride)
            return chain

        self.conv_a, self.conv_b = conv(C_in, C_out, 2), conv(C_out, C_out, 1)
        self.downsample = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(C_in, C_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_b(self.conv_a(x)) + self.downsample(x)


class Plain(nn.Module):
    """One cell per stage."""

    def __init__(self, C: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.cells = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.cells.append(PlainBlock(C, 2 * C))
                C *= 2
            self.cells.append(eager_supernets.NAS201SearchCell(C))
        self.lastact = nn.Sequential(nn.BatchNorm2d(C), nn.ReLU())
        self.classifier = nn.Linear(C, classes)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x) if isinstance(cell, PlainBlock) else cell(x, weights)
        return self.classifier(self.lastact(x).mean((2, 3)))


class Cells(list):  # type: ignore[type-arg]
    """The (operation, node it reads) pairs of every node."""

    def tostr(self) -> str:
        nodes = ("|" + "|".join(f"{op}~{source}" for op, source in node) + "|" for node in self)
        return "+".join(nodes)


class TinyNetworkDartsProj(Trained, Plain):
    """One cell per stage; decided edges have one-hot rows."""

    def __init__(
        self,
        C: int,
        N: int,
        max_nodes: int,
        num_classes: int,
        criterion: nn.Module,
        search_space: Sequence[str],
        args: Namespace,
    ) -> None:
        assert (N, max_nodes) == (1, 4)
        super().__init__(C, num_classes)
        self._criterion = criterion
        self.op_names, self.num_op = list(search_space), len(search_space)
        self._arch_parameters = (1e-3 * torch.randn(6, self.num_op)).requires_grad_()
        self.decided: dict[int, int] = {}
        self.reset_optimizer(args.learning_rate, args.momentum, args.weight_decay)

    def arch_parameters(self) -> list[Tensor]:
        return [self._arch_parameters]

    def project_op(self, eid: int, opid: int) -> None:
        self.decided[eid] = opid

    def get_projected_weights(self) -> Tensor:
        weights = self._arch_parameters.softmax(-1)
        for edge, op in self.decided.items():
            weights[edge].data.copy_(torch.eye(self.num_op)[op])
        return weights

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        return super().forward(x, self.get_projected_weights() if weights is None else weights)

    def genotype(self) -> Cells:
        best = iter(self.get_projected_weights().argmax(-1).tolist())
        return Cells(
            [(self.op_names[next(best)], source) for source in range(node)] for node in range(1, 4)
        )

# SPDX-License-Identifier: Apache-2.0
"""NASLib: operations take a second argument, children are primitive-0, primitive-1."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from originals import operations


class Identity(nn.Module):
    def forward(self, x: Tensor, edge_data: object) -> Tensor:
        return x


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor, edge_data: object) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class MaxPool(nn.Module):
    def __init__(self, C: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.maxpool = nn.MaxPool2d(kernel_size, stride=stride, padding=1)
        self.bn = nn.BatchNorm2d(C, affine=False)

    def forward(self, x: Tensor, edge_data: object) -> Tensor:
        return self.bn(self.maxpool(x))


class SepConv(operations.SepConv):
    def forward(self, x: Tensor, edge_data: object) -> Tensor:  # type: ignore[override]
        return self.op(x)


class DilConv(operations.DilConv):
    def forward(self, x: Tensor, edge_data: object) -> Tensor:  # type: ignore[override]
        return self.op(x)


class Gate(nn.Module):
    """An operation of a user's own."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor, edge_data: object) -> Tensor:
        return x * torch.sigmoid(self.conv(x))


class DARTSMixedOp(nn.Module):
    def __init__(self, primitives: list[nn.Module]) -> None:
        super().__init__()
        self.primitives = primitives
        for i, primitive in enumerate(primitives):
            self.add_module(f"primitive-{i}", primitive)

    def get_weights(self, edge_data):  # type: ignore[no-untyped-def]
        return edge_data.alpha

    def process_weights(self, weights: Tensor) -> Tensor:
        return torch.softmax(weights, dim=-1)

    def apply_weights(self, x, weights):  # type: ignore[no-untyped-def]
        return sum(w * op(x, None) for w, op in zip(weights, self.primitives, strict=True))

    def forward(self, x, edge_data):  # type: ignore[no-untyped-def]
        weights = self.process_weights(self.get_weights(edge_data))
        return self.apply_weights(x, weights)


class Graph(nn.Module):
    """Two edges one behind the other."""

    def __init__(self, C: int, gate: bool = False) -> None:
        super().__init__()
        self.edges = nn.ModuleDict()
        self.data = {}
        for name in ("first", "second"):
            ops = [
                Identity(),
                Zero(1),
                MaxPool(C, 3, 1),
                SepConv(C, C, 3, 1, 1, affine=False),
                DilConv(C, C, 5, 1, 4, 2, affine=False),
            ]
            if gate:
                ops.append(Gate(C))
            self.edges[name] = DARTSMixedOp(ops)
            self.data[name] = SimpleNamespace(alpha=torch.randn(len(ops)).requires_grad_())

    def forward(self, x: Tensor) -> Tensor:
        for name, edge in self.edges.items():
            x = edge(x, self.data[name])
        return x

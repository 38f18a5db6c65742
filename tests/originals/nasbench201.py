# SPDX-License-Identifier: Apache-2.0
"""NAS-Bench-201 as in AutoDL-Projects and darts-pt: the search cell and TinyNetwork."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


class ReLUConvBN(nn.Module):
    def __init__(
        self, C_in: int, C_out: int, size: int, stride: int, affine: bool, track: bool
    ) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(inplace=False),
            nn.Conv2d(C_in, C_out, size, stride=stride, padding=size // 2, bias=False),
            nn.BatchNorm2d(C_out, affine=affine, track_running_stats=track),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class POOLING(nn.Module):
    """No batch norm where the channels stay."""

    def __init__(self) -> None:
        super().__init__()
        self.preprocess = None
        self.op = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.op(self.preprocess(inputs) if self.preprocess else inputs)


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Zero(nn.Module):
    def __init__(self, C_in: int, C_out: int, stride: int) -> None:
        super().__init__()
        self.C_in, self.C_out, self.stride, self.is_zero = C_in, C_out, stride, True

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(0.0)


def operation(name: str, C: int, affine: bool, track: bool) -> nn.Module:
    if name.startswith("nor_conv"):
        return ReLUConvBN(C, C, int(name[-1]), 1, affine, track)
    if name == "dropout":
        return nn.Dropout(0.5)
    return {"none": Zero(C, C, 1), "skip_connect": Identity(), "avg_pool_3x3": POOLING()}[name]


class NAS201SearchCell(nn.Module):
    def __init__(
        self,
        C_in: int,
        C_out: int,
        stride: int,
        max_nodes: int,
        op_names: Sequence[str] = NAMES,
        affine: bool = False,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.op_names = list(op_names)
        self.edges = nn.ModuleDict()
        self.max_nodes = max_nodes
        for i in range(1, max_nodes):
            for j in range(i):
                self.edges[f"{i}<-{j}"] = nn.ModuleList(
                    operation(name, C_in, affine, track_running_stats) for name in op_names
                )
        self.edge_keys = sorted(self.edges)
        self.edge2index = {key: i for i, key in enumerate(self.edge_keys)}
        self.num_edges = len(self.edges)

    def forward(self, inputs, weightss):  # type: ignore[no-untyped-def]
        nodes = [inputs]
        for i in range(1, self.max_nodes):
            into = []
            for j in range(i):
                key = f"{i}<-{j}"
                row = weightss[self.edge2index[key]]
                layers = self.edges[key]
                into.append(sum(layer(nodes[j]) * w for layer, w in zip(layers, row, strict=True)))
            nodes.append(sum(into))
        return nodes[-1]


class ResNetBasicblock(nn.Module):
    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv_a = ReLUConvBN(inplanes, planes, 3, stride, True, True)
        self.conv_b = ReLUConvBN(planes, planes, 3, 1, True, True)
        self.downsample = nn.Sequential(
            nn.AvgPool2d(2, stride), nn.Conv2d(inplanes, planes, 1, bias=False)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.downsample(inputs) + self.conv_b(self.conv_a(inputs))


class TinyNetwork(nn.Module):
    def __init__(self, C: int, N: int, max_nodes: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.cells = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.cells.append(ResNetBasicblock(C, 2 * C, 2))
                C *= 2
            self.cells.extend(NAS201SearchCell(C, C, 1, max_nodes) for _ in range(N))
        self.lastact = nn.Sequential(nn.BatchNorm2d(C), nn.ReLU(inplace=True))
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C, num_classes)
        edges = max_nodes * (max_nodes - 1) // 2
        self.arch_parameters = nn.Parameter(1e-3 * torch.randn(edges, len(NAMES)))

    def forward(self, inputs):  # type: ignore[no-untyped-def]
        alphas = functional.softmax(self.arch_parameters, dim=-1)
        feature = self.stem(inputs)
        for cell in self.cells:
            search = isinstance(cell, NAS201SearchCell)
            feature = cell(feature, alphas) if search else cell(feature)
        out = self.global_pooling(self.lastact(feature))
        return self.classifier(out.view(out.size(0), -1))

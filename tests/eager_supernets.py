# SPDX-License-Identifier: Apache-2.0
"""Supernets as other code bases write them: attribute names and signatures of the originals.

Plain modules that know nothing of darts_fast. `zero` picks what quark0/darts does with a weight of
0 ("multiply") or what darts-pt does ("skip").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

DARTS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
NASBENCH201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return 0.0 * x[:, :, :: self.stride, :: self.stride]


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Chain(nn.Module):
    """What all operations with a Sequential `op` are."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ReLUConvBN(Chain):
    def __init__(self, C_in: int, C_out: int, size: int, affine: bool = False) -> None:
        super().__init__(
            nn.ReLU(inplace=False),
            nn.Conv2d(C_in, C_out, (size, size), padding=(size // 2, size // 2), bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )


def separable(C: int, size: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    padding = dilation * (size // 2)
    return [
        nn.ReLU(inplace=False),
        nn.Conv2d(C, C, size, stride, padding, dilation, groups=C, bias=False),
        nn.Conv2d(C, C, 1, bias=False),
        nn.BatchNorm2d(C, affine=affine),
    ]


class SepConv(Chain):
    def __init__(self, C: int, size: int, stride: int, affine: bool = False) -> None:
        super().__init__(*separable(C, size, stride, 1, affine), *separable(C, size, 1, 1, affine))


class SepConvSkip(SepConv):
    def forward(self, x: Tensor) -> Tensor:
        return self.op(x) + x


class DilConv(Chain):
    def __init__(self, C: int, size: int, stride: int, affine: bool = False) -> None:
        super().__init__(*separable(C, size, stride, 2, affine))


class FactorizedReduce(nn.Module):
    def __init__(self, C_in: int, C_out: int, affine: bool = False) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=False)
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat((self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])), dim=1))


class Pool(nn.Module):
    """NAS-Bench-201's: no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.preprocess = None
        self.op = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(self.preprocess(x) if self.preprocess else x)


class Noise(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x[:, :, :: self.stride, :: self.stride])


def operation(name: str, C: int, stride: int) -> nn.Module:
    if name == "none":
        return Zero(stride)
    if name == "noise":
        return Noise(stride)
    if name == "skip_connect":
        return Identity() if stride == 1 else FactorizedReduce(C, C)
    if name == "max_pool_3x3":
        pool: nn.Module = nn.MaxPool2d(3, stride=stride, padding=1)
        return nn.Sequential(pool, nn.BatchNorm2d(C, affine=False))
    if name == "avg_pool_3x3":
        pool = nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False)
        return nn.Sequential(pool, nn.BatchNorm2d(C, affine=False))
    size = int(name[9])
    if name.endswith("skip"):
        return SepConvSkip(C, size, stride)
    return SepConv(C, size, stride) if name.startswith("sep") else DilConv(C, size, stride)


class MixedOp(nn.Module):
    def __init__(self, C: int, stride: int, names: Sequence[str]) -> None:
        super().__init__()
        self._ops = nn.ModuleList(operation(name, C, stride) for name in names)

    def forward(self, x, weights):  # type: ignore[no-untyped-def]
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))


class SkippingMixedOp(MixedOp):
    def forward(self, x, weights):  # type: ignore[no-untyped-def]
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True) if w != 0)


class Cell(nn.Module):
    """The reduction cell's first input may be twice as large (`reduction_prev`)."""

    mixed_op = MixedOp

    def __init__(
        self,
        steps: int,
        multiplier: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        names: Sequence[str] = DARTS,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.preprocess0 = (
            FactorizedReduce(C_prev_prev, C) if reduction_prev else ReLUConvBN(C_prev_prev, C, 1)
        )
        self.preprocess1 = ReLUConvBN(C_prev, C, 1)
        self._steps = steps
        self._multiplier = multiplier
        self._ops = nn.ModuleList()
        self._bns = nn.ModuleList()
        for i in range(steps):
            for j in range(2 + i):
                self._ops.append(self.mixed_op(C, 2 if reduction and j < 2 else 1, names))

    def forward(self, s0, s1, weights):  # type: ignore[no-untyped-def]
        return self.nodes(s0, s1, weights, 0.0)

    def nodes(self, s0, s1, weights, drop_prob):  # type: ignore[no-untyped-def]
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edge = 0
        for _ in range(self._steps):
            total = 0
            for state in states:
                out = self._ops[edge](state, weights[edge])
                if drop_prob > 0 and self.training:
                    keep = torch.full((out.shape[0], 1, 1, 1), 1 - drop_prob).bernoulli()
                    out = out / (1 - drop_prob) * keep.to(out)
                total = total + out
                edge += 1
            states.append(total)
        return torch.cat(states[-self._multiplier :], dim=1)


class SkippingCell(Cell):
    mixed_op = SkippingMixedOp

    def forward(self, s0, s1, weights, drop_prob=0.0):  # type: ignore[no-untyped-def]
        return self.nodes(s0, s1, weights, drop_prob)


class Network(nn.Module):
    """Alphas are plain tensors outside the state_dict, as in the originals."""

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        zero: str,
        names: Sequence[str] = DARTS,
        cell: type[Cell] | None = None,
        steps: int = 4,
    ) -> None:
        super().__init__()
        kind = cell or (Cell if zero == "multiply" else SkippingCell)
        self.drop_path_prob = 0 if issubclass(kind, SkippingCell) else None
        self.stem = nn.Sequential(
            nn.Conv2d(3, 3 * C, 3, padding=1, bias=False), nn.BatchNorm2d(3 * C)
        )
        self.cells = nn.ModuleList()
        C_prev_prev, C_prev, reduction_prev = 3 * C, 3 * C, False
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            C = 2 * C if reduction else C
            sizes = (steps, steps, C_prev_prev, C_prev, C)
            self.cells.append(kind(*sizes, reduction, reduction_prev, names))
            C_prev_prev, C_prev, reduction_prev = C_prev, steps * C, reduction
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, num_classes)
        shape = (steps * (steps + 3) // 2, len(names))
        self.alphas_normal = (1e-3 * torch.randn(shape)).requires_grad_()
        self.alphas_reduce = (1e-3 * torch.randn(shape)).requires_grad_()

    def forward(self, x, weights=None):  # type: ignore[no-untyped-def]
        s0 = s1 = self.stem(x)
        extra = () if self.drop_path_prob is None else (self.drop_path_prob,)
        for cell in self.cells:
            alphas = self.alphas_reduce if cell.reduction else self.alphas_normal
            table = functional.softmax(alphas, dim=-1).to(x) if weights is None else weights
            s0, s1 = s1, cell(s0, s1, table, *extra)
        return self.classifier(self.global_pooling(s1).flatten(1))


class NAS201SearchCell(nn.Module):
    def __init__(self, C: int, max_nodes: int = 4, names: Sequence[str] = NASBENCH201) -> None:
        super().__init__()
        self.max_nodes = max_nodes
        self.edges = nn.ModuleDict()
        for i in range(1, max_nodes):
            for j in range(i):
                self.edges[f"{i}<-{j}"] = nn.ModuleList(self.operation(name, C) for name in names)
        self.edge2index = {key: index for index, key in enumerate(sorted(self.edges))}

    @staticmethod
    def operation(name: str, C: int) -> nn.Module:
        if name.startswith("nor_conv"):
            return ReLUConvBN(C, C, int(name[-1]))
        return {"none": Zero(1), "skip_connect": Identity(), "avg_pool_3x3": Pool()}[name]

    def forward(self, inputs, weightss):  # type: ignore[no-untyped-def]
        nodes = [inputs]
        for i in range(1, self.max_nodes):
            total = 0
            for j in range(i):
                key = f"{i}<-{j}"
                row = weightss[self.edge2index[key]]
                total = total + sum(
                    op(nodes[j]) * w for op, w in zip(self.edges[key], row, strict=True)
                )
            nodes.append(total)
        return nodes[-1]

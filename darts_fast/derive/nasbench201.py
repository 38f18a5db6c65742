# SPDX-License-Identifier: Apache-2.0
"""The stand-alone network of a NAS-Bench-201 architecture (Dong and Yang, ICLR 2020, section 2)."""

from __future__ import annotations

from torch import Tensor, nn

from darts_fast.nn.nasbench201 import OPS, ResNetBasicblock
from darts_fast.spaces import ops_from_arch
from darts_fast.spaces.tables import NASBENCH201_EDGES


class InferCell(nn.Module):
    """One cell: node i is the sum of the operations on its edges, the last node is the output.

    ``none`` multiplies its input by 0, as in the benchmark's code. [N, C, H, W] to the same shape.
    """

    def __init__(self, arch: str, C: int) -> None:
        super().__init__()
        self.primitives = tuple(ops_from_arch(arch))
        self.layers = nn.ModuleList(OPS[op](C, C, 1, True, True) for op in self.primitives)

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for node in range(1, 4):
            incoming = [
                layer(nodes[source])
                for layer, (source, target) in zip(self.layers, NASBENCH201_EDGES, strict=True)
                if target == node
            ]
            total = incoming[0]
            for term in incoming[1:]:
                total = total + term
            nodes.append(total)
        return nodes[-1]


class NasBench201Network(nn.Module):
    """Stem of C channels, N cells, residual reduction, N cells, residual reduction, N cells.

    Then BN, ReLU, global average pooling and a linear classifier; channels C, 2C, 4C. Module and
    state_dict names are those of the benchmark's code. All batch norms are affine.

    Args:
        arch: architecture string, ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``.
        C: channels of the first stage.
        N: cells per stage.
        num_classes: outputs.

    Raises:
        ValueError: not an architecture string, or a size below 1.
    """

    def __init__(self, arch: str, C: int = 16, N: int = 5, num_classes: int = 10) -> None:
        super().__init__()
        if C < 1 or N < 1 or num_classes < 1:
            raise ValueError(
                "NasBench201Network: C, N and num_classes must be at least 1, "
                f"got C={C}, N={N}, num_classes={num_classes}"
            )
        self.stem = nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        cells: list[nn.Module] = [InferCell(arch, C) for _ in range(N)]
        for stage in (1, 2):
            channels = C * 2**stage
            cells.append(ResNetBasicblock(channels // 2, channels, 2))
            cells += [InferCell(arch, channels) for _ in range(N)]
        self.cells = nn.ModuleList(cells)
        self.lastact = nn.Sequential(nn.BatchNorm2d(4 * C), nn.ReLU(inplace=True))
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4 * C, num_classes)

    def check_image_size(self, h: int, w: int) -> None:
        """ValueError unless height and width can be halved twice."""
        if h < 4 or w < 4 or h % 4 or w % 4:
            raise ValueError(
                "NasBench201Network: height and width must be even at both reductions, "
                f"that is multiples of 4, got {h}x{w}"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, num_classes]; ValueError for sizes that cannot work."""
        self.check_image_size(x.shape[-2], x.shape[-1])
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        logits: Tensor = self.classifier(self.global_pooling(self.lastact(x)).flatten(1))
        return logits

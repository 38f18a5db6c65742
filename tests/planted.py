# SPDX-License-Identifier: Apache-2.0
"""A supernet with a known best architecture, whose architecture weights point elsewhere.

A chain of five mixed edges with the operations noise, mean and rotation. Labels are those of the
all-rotation network, so that one is right on every image; on every edge the largest weight is the
noise's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darts_fast.nn import Supernet
from darts_fast.nn.operations import Noise
from darts_fast.spaces import Space

OPERATIONS = ("noise", "mean", "rotation")
EDGES = 5
WIDTH = 16
CLASSES = 4


@dataclass(frozen=True)
class ChainSpace(Space):
    """Five edges in a row; the genotype is the names of the strongest operations."""

    def genotype(self, weights: Mapping[str, Tensor]) -> str:  # type: ignore[override]
        return "|".join(OPERATIONS[op] for op in weights["cell"].argmax(1).tolist())


SPACE = ChainSpace(
    name="chain",
    cell_types=("cell",),
    primitives={"cell": (OPERATIONS,) * EDGES},
    edges=tuple((node, node + 1) for node in range(EDGES)),
    zero_rule="skip",
    select_topology=False,
)


class PlantedNet(Supernet):
    """``[N, WIDTH, 1, 1] -> [N, CLASSES]``."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__(SPACE, None)
        square = torch.randn(EDGES, WIDTH, WIDTH, generator=generator)
        self.rotations = nn.Parameter(torch.linalg.qr(square).Q)
        self.classifier = nn.Linear(WIDTH, CLASSES, bias=False)
        with torch.no_grad():
            self.classifier.weight.copy_(torch.linalg.qr(square[0]).Q[:CLASSES])
        self.noises = nn.ModuleList(Noise(1, std=0.5) for _ in range(EDGES))
        self._register_alphas({"cell": "alphas"})
        with torch.no_grad():
            self.alphas.copy_(torch.tensor([0.3, 0.0, 0.1]).expand(EDGES, 3))

    def forward(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        table = {**self.edge_weights(), **(weights or {})}["cell"]
        for edge in range(EDGES):
            w = table[edge]
            rotated = torch.einsum("ij,njhw->nihw", self.rotations[edge], x)
            mean = x.mean(1, keepdim=True).expand_as(x)
            mixed = w[0] * self.noises[edge](x) + w[1] * mean + w[2] * rotated
            x = mixed / mixed.square().mean(1, keepdim=True).add(1e-12).sqrt()
        return self.classifier(x.flatten(1))


def planted(images: int = 1000, seed: int = 0) -> tuple[PlantedNet, list[tuple[Tensor, Tensor]]]:
    """The network, and labelled images in batches of 100."""
    generator = torch.Generator().manual_seed(seed)
    net = PlantedNet(generator)
    x = torch.randn(images, WIDTH, 1, 1, generator=generator)
    rotation = torch.zeros(EDGES, 3)
    rotation[:, 2] = 1
    with torch.no_grad():
        labels = net(x, {"cell": rotation}).argmax(1)
    return net, list(zip(x.split(100), labels.split(100), strict=True))

# SPDX-License-Identifier: Apache-2.0
"""Architectures at random: the control of every selection."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from darts_fast.spaces.genotype import Genotype
from darts_fast.spaces.nasbench201 import arch_from_ops
from darts_fast.spaces.space import Space


def random_genotype(space: Space, generator: torch.Generator) -> Genotype | str:
    """An architecture drawn uniformly from a space.

    DARTS spaces: every node keeps two distinct inputs (printed in ascending order) and each kept
    edge one of its operations other than ``none``. NAS-Bench-201: one of the five operations per
    edge, returned as an architecture string.

    Args:
        space: where to draw from.
        generator: a CPU generator; the same state gives the same architecture.
    """

    def draw(names: Sequence[str]) -> str:
        return names[int(torch.randint(len(names), (), generator=generator))]

    if not space.select_topology:
        (cell,) = space.cell_types
        return arch_from_ops([draw(names) for names in space.primitives[cell]])

    cells: dict[str, list[tuple[str, int]]] = {}
    for cell_type in space.cell_types:
        cells[cell_type] = []
        for incoming in space.node_edges.values():
            kept = torch.randperm(len(incoming), generator=generator)[:2].sort().values.tolist()
            for position in kept:
                edge = incoming[position]
                names = [n for n in space.primitives[cell_type][edge] if n != "none"]
                cells[cell_type].append((draw(names), space.edges[edge][0]))
    nodes = sorted(space.node_edges)
    concat = range(nodes[0], nodes[-1] + 1)
    return Genotype(cells["normal"], concat, cells["reduce"], concat)

# SPDX-License-Identifier: Apache-2.0
"""Prints the MiB that an evaluation adds to the process, and those that the engine expected of the
chunks that it made: removal_memory.py SPACE BUDGET.

The high-water mark of the resident memory, less what was resident before. A batch of two images
comes first, under one table, so that what a process needs once is not counted.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from darts_fast.nn import build_supernet
from darts_fast.selection.engine import MaskedEvaluation, memory, together


def resident_mib(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main(space: str, budget: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = 1 if space == "nasbench201" else 3
    net = build_supernet(space, channels=8, num_classes=3, layers=layers)
    tables = [{}]
    for cell_type, own in net.edge_weights().items():
        for edge in (0, net.space.num_edges - 1):
            for op in range(net.space.num_ops):
                table = own.detach().clone()
                table[edge, op] = 0
                tables.append({cell_type: table})
    images, labels = torch.randn(16, 3, 32, 32), torch.zeros(16, dtype=torch.int64)
    MaskedEvaluation(net, tables[:1])(images[:2], labels[:2])
    needs: dict[int, list[memory.Need]] = {}
    sizes: list[list[int]] = []  # of the chunks, stage by stage in their order
    stage_needs, cut = together.stage_needs, together.cut

    def noted_needs(walk: Any, x: Any, extra: int, first: int, **rest: Any) -> list[memory.Need]:
        needs[first] = stage_needs(walk, x, extra, first, **rest)
        return needs[first]

    def noted_cut(items: Sequence[int], most: int) -> list[Sequence[int]]:
        parts = list(cut(items, most))
        sizes.append([len(part) for part in parts])
        return parts

    together.stage_needs, together.cut = noted_needs, noted_cut
    before = resident_mib("VmRSS")
    MaskedEvaluation(net, tables, max_memory=budget)(images, labels)
    added = resident_mib("VmHWM") - before
    expected = max(
        need.of(size)
        for stage, chunks in zip(sorted(needs), sizes, strict=True)
        for size in chunks
        for need in needs[stage]
    )
    print(added, expected / 2**20)


if __name__ == "__main__":
    main(*sys.argv[1:])

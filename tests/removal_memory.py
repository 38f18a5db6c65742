# SPDX-License-Identifier: Apache-2.0
"""Prints the MiB that an evaluation adds to the process: removal_memory.py SPACE BUDGET.

The high-water mark of the resident memory, less what was resident before. A batch of two images
comes first, so that what a process needs once is not counted.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

from darts_fast.nn import build_supernet
from darts_fast.selection.engine import MaskedEvaluation


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
    MaskedEvaluation(net, tables)(images[:2], labels[:2])
    before = resident_mib("VmRSS")
    MaskedEvaluation(net, tables, max_memory=budget)(images, labels)
    print(resident_mib("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])

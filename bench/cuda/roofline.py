# SPDX-License-Identifier: Apache-2.0
"""The least time of each part on named GPUs, from published rates: the table of docs/cuda.md.

    python bench/cuda/roofline.py --write        # fill the table in docs/cuda.md

Bytes and operations are counted, not measured (bench/work.py; node_sum: every map once per sweep);
the rates are the vendor's, of memory and of float32 outside the tensor cores. What is measured on a
device stands in bench/results/gpu.json once there is one.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import torch
from toolkit import ROOT

sys.path.insert(0, str(ROOT / "bench"))

from work import count_work

from darts_fast.nn import MixedOp, build_supernet
from darts_fast.spaces import get_space

PAGE = ROOT / "docs" / "cuda.md"
START, END = "<!-- bench/cuda/roofline.py -->\n", "<!-- end -->"
BATCH = 64


@dataclass(frozen=True)
class Gpu:
    """Published peaks: memory in GB/s, float32 in TFLOP/s."""

    name: str
    memory: float
    float32: float


# NVIDIA's data sheets and architecture white papers of these products.
GPUS = (
    Gpu("T4", 320, 8.1),
    Gpu("RTX 3090", 936, 35.6),
    Gpu("A100 80 GB SXM", 2039, 19.5),
    Gpu("RTX 4090", 1008, 82.6),
    Gpu("H100 SXM", 3350, 67),
    Gpu("H200", 4800, 67),
    Gpu("RTX 5090", 1792, 104.8),
)


@dataclass(frozen=True)
class Part:
    """Something that is computed, with its operations and the bytes it must move."""

    name: str
    flop: float
    nbytes: float

    def floor(self, gpu: Gpu) -> tuple[float, str]:
        """Milliseconds, and what they are bound by."""
        memory = self.nbytes / gpu.memory / 1e6
        arithmetic = self.flop / gpu.float32 / 1e9
        return max((memory, "memory"), (arithmetic, "arithmetic"))


def parts() -> list[Part]:
    """At batch 64 in float32: the last node of a cell, an edge, the s5 supernet."""
    terms, elements = 35, BATCH * 16 * 32 * 32
    found = [
        Part("node_sum: statistics", 4 * terms * elements, 4 * terms * elements),
        Part("node_sum: sum", 3 * terms * elements, 4 * (terms + 1) * elements),
        Part("node_sum: reductions", 3 * terms * elements, 4 * (terms + 1) * elements),
        Part("node_sum: gradients", 6 * terms * elements, 4 * (2 * terms + 1) * elements),
    ]
    space = get_space("s5")
    edge = MixedOp(16, 1, space.primitives["normal"][0])
    weights = torch.full((len(space.primitives["normal"][0]),), 0.1)
    work = count_work(edge, torch.zeros(1, 16, 32, 32), weights).times(BATCH)
    found.append(Part("edge: forward", work.forward_flop, work.forward_bytes))
    found.append(Part("edge: backward", work.step_done - work.forward_flop, work.backward_bytes))
    net = build_supernet("s5", channels=16, num_classes=10, layers=8)
    work = count_work(net, torch.zeros(1, 3, 32, 32)).times(BATCH)
    found.append(Part("supernet of 8 cells: forward", work.forward_flop, work.forward_bytes))
    found.append(Part("supernet of 8 cells: step", work.step_done, work.step_bytes))
    return found


def table() -> str:
    """Floors in milliseconds; `a` marks those that arithmetic sets, the others memory."""
    heading = ["part", "GFLOP", "GB", *(gpu.name for gpu in GPUS)]
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    for part in parts():
        cells = [part.name, f"{part.flop / 1e9:.2f}", f"{part.nbytes / 1e9:.3f}"]
        for gpu in GPUS:
            milliseconds, bound = part.floor(gpu)
            cells.append(f"{milliseconds:.3g}{' a' if bound == 'arithmetic' else ''}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def filled(page: str) -> str:
    """The page with its table made anew.

    Raises:
        ValueError: the page has no place for it.
    """
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(
            f"roofline: the page must have a place {START.strip()} ... {END}, got none"
        )
    return before + start + table() + end + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="fill docs/cuda.md")
    if parser.parse_args().write:
        PAGE.write_text(filled(PAGE.read_text()))
    else:
        print(table(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

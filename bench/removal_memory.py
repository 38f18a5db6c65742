# SPDX-License-Identifier: Apache-2.0
"""Prints the MiB that scoring one edge adds to the process: removal_memory.py RIVAL BATCH THREADS.

Measured as in peak_memory.py, after the scores of a batch of two images.
"""

from __future__ import annotations

import sys

import torch
from peak_memory import resident_mib
from removals import RemovalCase


def main(rival: str, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    case = RemovalCase(rival, 2)
    case.scores(case.of_edge("normal", 7))
    case = RemovalCase(rival, batch)
    before = resident_mib("VmRSS")
    case.scores(case.of_edge("normal", 7))
    print(resident_mib("VmHWM") - before)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

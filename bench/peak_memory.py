# SPDX-License-Identifier: Apache-2.0
"""Prints the MiB that one training step adds to the process: peak_memory.py RIVAL BATCH THREADS.

The high-water mark of the resident memory after the step, less what was resident before it. A step
of two images comes first, so that what a process needs once is not counted.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from supernets import SupernetCase


def resident_mib(name: str) -> float:
    """VmRSS, or VmHWM, its high-water mark. (getrusage would give the parent's, from the fork.)"""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main(rival: str, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    SupernetCase(rival, 2).step()
    case = SupernetCase(rival, batch)
    before = resident_mib("VmRSS")
    case.step()
    print(resident_mib("VmHWM") - before)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

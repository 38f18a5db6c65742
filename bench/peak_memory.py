# SPDX-License-Identifier: Apache-2.0
"""Prints the MiB that one training step adds to the process: peak_memory.py RIVAL BATCH THREADS.

The high-water mark of the resident memory after the step, less what was resident before it. A step
of two images comes first, so that what a process needs once is not counted.

The benchmarks of memory start such scripts with `measure_peak`, each rival in a process of its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from supernets import SupernetCase


def resident_mib(name: str) -> float:
    """VmRSS, or VmHWM, its high-water mark. (getrusage would give the parent's, from the fork.)"""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def print_added(make: Callable[[str, int], Callable[[], object]]) -> None:
    """The body of a script RIVAL BATCH THREADS: prints what a call adds at most, MiB.

    Args: make, what gives the call for a rival and a batch size.
    """
    rival, batch, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    make(rival, 2)()
    call = make(rival, batch)
    before = resident_mib("VmRSS")
    call()
    print(resident_mib("VmHWM") - before)


def measure_peak(
    measure: Callable[..., None],
    script: str,
    group: str,
    *,
    rival: str,
    batch: int,
    threads: int,
    headline: bool = False,
) -> None:
    """Records what a script of this folder prints, see `print_added`."""
    path = Path(__file__).with_name(script)
    command = [sys.executable, str(path), rival, str(batch), str(threads)]
    found = []

    def run() -> None:
        done = subprocess.run(command, cwd=path.parent.parent, capture_output=True, check=True)
        found.append(float(done.stdout))

    measure(
        run,
        group=f"{group}, peak memory, batch {batch}",
        rival=rival,
        rounds=1,
        warmup=0,
        value=lambda: found[-1],
        unit="MiB",
        headline=headline,
    )


if __name__ == "__main__":
    print_added(lambda rival, batch: SupernetCase(rival, batch).step)

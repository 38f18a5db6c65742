# SPDX-License-Identifier: Apache-2.0
"""Times of calls, and the machine's own limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch


class Seconds(NamedTuple):
    """Medians over rounds."""

    wall: float
    cpu: float
    """Of all threads of the process."""


def alternate(functions: Sequence[Callable[[], object]], rounds: int) -> list[Seconds]:
    """Medians of several functions whose calls take turns, after one call of each that warms up.

    What slows the machine for a while then slows all of them: their ratios stay true.
    """
    for function in functions:
        function()
    walls: list[list[float]] = [[] for _ in functions]
    cpus: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for i, function in enumerate(functions):
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            walls[i].append(time.perf_counter() - wall)
            cpus[i].append(time.process_time() - cpu)
    medians = [map(statistics.median, (walls[i], cpus[i])) for i in range(len(functions))]
    return [Seconds(*pair) for pair in medians]


def gemm_gflops() -> float:
    """The rate of a 1024 x 1024 x 1024 product in single precision, GFLOP/s."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / alternate([lambda: a @ b], rounds=5)[0].wall / 1e9


def copy_gbytes_per_s() -> float:
    """The rate of a copy far larger than the caches, bytes read and written, GB/s."""
    source = torch.randn(32 * 1024**2)
    target = torch.empty_like(source)
    return 2 * source.nbytes / alternate([lambda: target.copy_(source)], rounds=7)[0].wall / 1e9

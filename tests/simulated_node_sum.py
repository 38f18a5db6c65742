# SPDX-License-Identifier: Apache-2.0
"""The CUDA half of node_sum, emulated on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from checked_runs import build_of_process
from emulated import emulated
from simulated_cell import library_folder
from simulator import Simulator


@cache
def _simulator() -> Simulator:
    # Of a process: a library registers its kernels once.
    return Simulator(library_folder(), build_of_process())


@pytest.fixture
def backend() -> Iterator[Simulator]:
    """Emulated kernels in the place of the CPU's; outputs and scratch start as NaN."""
    simulator = _simulator()
    kernels = simulator.registered("node_sum", "node_sum_backward")
    with emulated(simulator, kernels):
        yield simulator

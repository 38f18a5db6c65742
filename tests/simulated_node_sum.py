# SPDX-License-Identifier: Apache-2.0
"""The CUDA half of node_sum, emulated on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from checked_runs import build_of_process
from simulated_cell import library_folder
from simulator import Order, Simulator


@cache
def _simulator() -> Simulator:
    # Of a process: a library registers its kernels once.
    return Simulator(library_folder(), build_of_process())


@pytest.fixture
def backend() -> Iterator[Simulator]:
    """Emulated kernels in the place of the CPU's; outputs and scratch start as NaN."""
    simulator = _simulator()
    simulator.set_order(Order.SHUFFLED)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty allocates
    with simulator.registered("node_sum", "node_sum_backward"):
        yield simulator
    torch.use_deterministic_algorithms(False)


def launches_of(simulator: Simulator, call: Callable[[], object]) -> int:
    """Kernels that a call launches."""
    before = simulator.launches()
    call()
    return simulator.launches() - before


def shifted(y: torch.Tensor) -> torch.Tensor:
    """The same map, channels_last, one element behind an aligned address."""
    n, c, h, w = y.shape
    memory = torch.empty(y.numel() + 1, dtype=y.dtype)[1:].view(n, h, w, c).permute(0, 3, 1, 2)
    return memory.copy_(y.detach()).requires_grad_()

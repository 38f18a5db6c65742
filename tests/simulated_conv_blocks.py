# SPDX-License-Identifier: Apache-2.0
"""The CUDA half of conv_blocks, emulated on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from checked_runs import build_of_process
from emulated import emulated
from simulated_cell import architecture_flags, library_folder
from simulator import Simulated


@cache
def _simulated() -> Simulated:
    # Of a process: a library registers its kernels once.
    return Simulated(
        *(library_folder(), "conv_blocks", build_of_process()),
        bindings=["conv_blocks_checks.cpp"],
        flags=architecture_flags(),
    )


@pytest.fixture
def backend() -> Iterator[Simulated]:
    """Emulated kernels in the place of the CPU's; outputs and scratch start as NaN."""
    simulated = _simulated()
    kernels = simulated.registered("conv_blocks", "conv_blocks_backward")
    with emulated(simulated, kernels):
        yield simulated

# SPDX-License-Identifier: Apache-2.0
"""The CUDA half of conv_blocks, emulated on the CPU."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from simt_build import Build
from simulated_cell import BUILD
from simulator import Order, Simulated


@cache
def _simulated() -> Simulated:
    # Of a process: a library registers its kernels once.
    with tempfile.TemporaryDirectory() as folder:
        build = Build(os.environ.get(BUILD, "plain"))
        return Simulated(Path(folder), "conv_blocks", build, bindings=["conv_blocks_checks.cpp"])


@pytest.fixture
def backend() -> Iterator[Simulated]:
    """Emulated kernels in the place of the CPU's; outputs and scratch start as NaN."""
    simulated = _simulated()
    simulated.set_order(Order.SHUFFLED)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty allocates
    with simulated.registered("conv_blocks"):
        yield simulated
    torch.use_deterministic_algorithms(False)

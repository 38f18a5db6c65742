# SPDX-License-Identifier: Apache-2.0
"""One thread against two: wall and CPU time of the fused training step, in turns.

Same supernet as bench_supernet.py. It needs a quiet machine: a thread that waits for another keeps
its core busy, so that another process on one of the two cores spoils the CPU time as well, unless
OMP_WAIT_POLICY=passive (recorded beside the times) lets it sleep.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from supernets import SupernetCase, assert_equal_results
from timing import alternate


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
@pytest.mark.parametrize("batch", [16, 64], indirect=True)
def test_two_threads(measure: Callable[..., None], smoke: bool, threads: int, batch: int) -> None:
    assert_equal_results("fused")
    case = SupernetCase("fused", batch)

    def step_on(count: int) -> Callable[[], None]:
        def step() -> None:
            torch.set_num_threads(count)
            case.step()

        return step

    try:
        one, two = alternate([step_on(1), step_on(2)], rounds=1 if smoke else 9)
        measure(
            step_on(2),
            group=f"supernet training step on two threads, batch {batch}",
            rival="fused",
            rounds=5,
            facts={
                "times as fast as one thread": one.wall / two.wall,
                "of its CPU time": two.cpu / one.cpu,
            },
            headline=batch == 64,
        )
    finally:
        torch.set_num_threads(threads)

# SPDX-License-Identifier: Apache-2.0
"""The training step when every other edge of a cell is fixed to one operation, each in turn.

Same supernet as bench_supernet.py; its rule for a weight of 0 is "skip", so that the six other
operations of a fixed edge need not be computed. Beside the time stand the shares that are left of
the full step's time, measured in turns with it, and of its multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rivals import RIVALS
from supernets import SupernetCase, assert_equal_results
from timing import alternate


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [16, 64], indirect=True)
def test_projected_step(measure: Callable[..., None], smoke: bool, rival: str, batch: int) -> None:
    assert_equal_results(rival, projected=True)
    case = SupernetCase(rival, batch, projected=True)
    work = case.work()
    facts = {}
    if rival == "fused":
        whole = SupernetCase(rival, batch)
        left, full = alternate([case.step, whole.step], rounds=1 if smoke else 9)
        facts["of the full step's time"] = left.wall / full.wall
        facts["of its multiply-adds"] = work.step_flop / whole.work().step_flop
    measure(
        case.step,
        group=f"supernet training step, half of the edges projected, batch {batch}",
        rival=rival,
        flop=work.step_flop,
        done=work.step_done,
        nbytes=work.step_bytes,
        rounds=5 if rival == "fused" else 2,
        facts=facts,
        headline=batch == 64,
    )

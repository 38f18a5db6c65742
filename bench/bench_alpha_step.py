# SPDX-License-Identifier: Apache-2.0
"""The architecture step: forward and dL/dalpha with the weights at requires_grad False.

Same supernet as bench_supernet.py. Beside the time stands its share of a full step of the same
rival, measured in turns with it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rivals import RIVALS
from supernets import SupernetCase, assert_equal_results
from timing import alternate


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [16, 64], indirect=True)
def test_alpha_step(measure: Callable[..., None], smoke: bool, rival: str, batch: int) -> None:
    assert_equal_results(rival)
    case = SupernetCase(rival, batch)
    facts = {}
    if rival == "fused":
        alpha, full = alternate([case.alpha_step, case.step], rounds=1 if smoke else 9)
        facts["of the full step's time"] = alpha.wall / full.wall
    measure(
        case.alpha_step,
        group=f"supernet architecture step, batch {batch}",
        rival=rival,
        rounds=5 if rival == "fused" else 2,
        facts=facts,
        headline=batch == 64,
    )

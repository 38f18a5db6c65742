# SPDX-License-Identifier: Apache-2.0
"""The training step of the NAS-Bench-201 supernet, C = 16, N = 5, 32x32, batch 64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rivals import RIVALS
from supernets import SupernetCase, assert_equal_results


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [64], indirect=True)
def test_training_step(measure: Callable[..., None], rival: str, batch: int) -> None:
    assert_equal_results(rival, "nasbench201")
    case = SupernetCase(rival, batch, "nasbench201")
    work = case.work()
    measure(
        case.step,
        group=f"NAS-Bench-201 supernet training step, batch {batch}",
        rival=rival,
        flop=work.step_flop,
        done=work.step_done,
        nbytes=work.step_bytes,
        rounds=7 if rival == "fused" else 3,
        headline=True,
    )

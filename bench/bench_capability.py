# SPDX-License-Identifier: Apache-2.0
"""The training step on the kernels of weaker processors, AVX2 and the x86-64 baseline, batch 16.

Same supernet as bench_supernet.py. Eager is not capped and uses all that the machine has.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rivals import RIVALS
from supernets import SupernetCase, assert_equal_results

import darts_fast


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [16], indirect=True)
@pytest.mark.parametrize("capability", ["AVX2", "DEFAULT"])
def test_training_step(
    measure: Callable[..., None], rival: str, capability: str, batch: int
) -> None:
    if capability not in darts_fast.available_cpu_capabilities():
        pytest.skip(f"{capability} is not in this build or not on this machine")
    before = darts_fast.cpu_capability()
    darts_fast.set_cpu_capability(capability)
    try:
        assert_equal_results(rival, capability=capability)
        case = SupernetCase(rival, batch)
        work = case.work()
        measure(
            case.step,
            group=f"supernet training step, kernels of {capability}, batch {batch}",
            rival=rival,
            flop=work.step_flop,
            rounds=3 if rival == "fused" else 2,
            headline=True,
        )
    finally:
        darts_fast.set_cpu_capability(before)

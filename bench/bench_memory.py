# SPDX-License-Identifier: Apache-2.0
"""Peak memory that a training step adds, batch 64, each rival in a process of its own.

Same supernet as bench_supernet.py; see peak_memory.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from peak_memory import measure_peak
from rivals import RIVALS
from supernets import assert_equal_results


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [64], indirect=True)
def test_peak_memory(measure: Callable[..., None], threads: int, rival: str, batch: int) -> None:
    assert_equal_results(rival)
    measure_peak(
        *(measure, "peak_memory.py", "supernet training step"),
        rival=rival,
        batch=batch,
        threads=threads,
        headline=True,
    )

# SPDX-License-Identifier: Apache-2.0
"""Peak memory that a training step adds, batch 64, each rival in a process of its own.

Same supernet as bench_supernet.py; see peak_memory.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rivals import RIVALS
from supernets import assert_equal_results


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [64], indirect=True)
def test_peak_memory(measure: Callable[..., None], threads: int, rival: str, batch: int) -> None:
    assert_equal_results(rival)
    script = Path(__file__).with_name("peak_memory.py")
    command = [sys.executable, str(script), rival, str(batch), str(threads)]
    found = []

    def run() -> None:
        done = subprocess.run(command, cwd=script.parent.parent, capture_output=True, check=True)
        found.append(float(done.stdout))

    measure(
        run,
        group=f"supernet training step, peak memory, batch {batch}",
        rival=rival,
        rounds=1,
        warmup=0,
        value=lambda: found[-1],
        unit="MiB",
        headline=True,
    )

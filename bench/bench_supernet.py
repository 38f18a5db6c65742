# SPDX-License-Identifier: Apache-2.0
"""The whole DARTS supernet, C = 16, 8 cells, space s5, 32x32: forward and training step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rivals import RIVALS
from supernets import SupernetCase, assert_equal_results


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [16, 64], indirect=True)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_forward(measure: Callable[..., None], rival: str, mode: str, batch: int) -> None:
    assert_equal_results(rival)
    case = SupernetCase(rival, batch)
    case.net.train(mode == "train")
    work = case.work()
    with torch.no_grad():
        measure(
            case.forward,
            group=f"supernet forward, {mode} mode, batch {batch}",
            rival=rival,
            flop=work.forward_flop,
            nbytes=work.forward_bytes,
            rounds=25 if rival == "fused" else 5,
            headline=batch == 64,
        )


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [16, 64], indirect=True)
def test_training_step(measure: Callable[..., None], rival: str, batch: int) -> None:
    assert_equal_results(rival)
    case = SupernetCase(rival, batch)
    work = case.work()
    measure(
        case.step,
        group=f"supernet training step, batch {batch}",
        rival=rival,
        flop=work.step_flop,
        done=work.step_done,
        nbytes=work.step_bytes,
        rounds=11 if rival == "fused" else 3,
        headline=True,
    )

# SPDX-License-Identifier: Apache-2.0
"""Perturbation-based selection's own work: the supernet with each operation removed in turn.

Same supernet as bench_supernet.py, in train mode, one batch for all removals. Eager is a loop of
full forwards, as DARTS-PT ships it. Beside the engine's time stands its share of a loop of fused
forwards, measured in turns with it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from peak_memory import measure_peak
from removals import RemovalCase, Tables, assert_equal_scores
from rivals import RIVALS
from timing import alternate


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [64], indirect=True)
@pytest.mark.parametrize("cell_type", ["normal", "reduce"])
def test_operation_step(
    measure: Callable[..., None], smoke: bool, rival: str, batch: int, cell_type: str
) -> None:
    assert_equal_scores(rival)
    case = RemovalCase(rival, batch)
    tables = case.of_edge(cell_type, 7)
    measure(
        lambda: case.scores(tables),
        group=f"7 removals of a {cell_type} edge, batch {batch}",
        rival=rival,
        rounds=5 if rival == "fused" else 3,
        warmup=1 if rival == "fused" else 0,
        facts=_shares(case, tables, rounds=1 if smoke else 3),
        headline=True,
    )


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [64], indirect=True)
def test_every_removal(measure: Callable[..., None], smoke: bool, rival: str, batch: int) -> None:
    assert_equal_scores(rival)
    case = RemovalCase(rival, batch)
    tables = case.every()
    if smoke:
        tables = tables[::20]
    measure(
        lambda: case.scores(tables),
        group=f"every removal of the network and the base, batch {batch}",
        rival=rival,
        rounds=1,
        warmup=1 if rival == "fused" else 0,
        facts=_shares(case, tables, rounds=1),
        headline=True,
    )


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [64], indirect=True)
def test_removal_memory(measure: Callable[..., None], threads: int, rival: str, batch: int) -> None:
    assert_equal_scores(rival)
    measure_peak(
        *(measure, "removal_memory.py", "7 removals of a normal edge"),
        rival=rival,
        batch=batch,
        threads=threads,
    )


def _shares(case: RemovalCase, tables: Tables, rounds: int) -> dict[str, float]:
    """Of the engine: its time per removal in parts of one fused forward."""
    if case.rival != "fused":
        return {}
    one = [tables[0]]
    engine, forward = alternate([lambda: case.scores(tables), lambda: case.loop(one)], rounds)
    return {"of a fused forward per removal": engine.wall / len(tables) / forward.wall}

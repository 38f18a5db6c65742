# SPDX-License-Identifier: Apache-2.0
"""The budget of memory of `MaskedEvaluation`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from removal_cases import small_batches, small_net, without

from darts_fast.selection.engine import MaskedEvaluation, memory, together


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("space", "budget"), [("s5", 100), ("s5", 300), ("s4", 80), ("nasbench201", 60)]
)
def test_the_budget_is_kept_and_what_is_expected_is_close(space: str, budget: int) -> None:
    added, expected = added_mib(space, budget)
    assert added <= expected <= min(1.3 * added, budget)


def added_mib(space: str, budget: int) -> list[float]:
    """What a process took, and what the engine expected of the chunks it chose."""
    script = Path(__file__).with_name("removal_memory.py")
    command = [sys.executable, str(script), space, f"{budget}MiB"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return [float(word) for word in done.stdout.split()]


def test_a_budget_decides_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (images, labels) = small_net("s5", layers=3), small_batches((4,))[0]
    tables = [without(net, ("normal", 0, op)) for op in range(7)]
    sizes: list[int] = []
    cut = together.cut
    monkeypatch.setattr(
        together, "cut", lambda items, most: [sizes.append(len(p)) or p for p in cut(items, most)]
    )
    with pytest.raises(ValueError, match="must hold one table, ") as error:
        MaskedEvaluation(net, tables, max_memory=1)(images, labels)
    needed = float(str(error.value).split(" MiB")[0].rsplit(" ", 1)[1])
    MaskedEvaluation(net, tables, max_memory=f"{needed + 0.1} MiB")(images, labels)
    assert sizes == 7 * [1]
    del sizes[:]
    MaskedEvaluation(net, tables, max_memory="4GiB")(images, labels)
    assert sizes == [7]
    with pytest.raises(ValueError, match="must hold one table, "):
        MaskedEvaluation(net, tables, max_memory=f"{needed - 0.1} MiB")(images, labels)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(7, 7), ("7 B", 7), ("1.5KiB", 1536), ("2 MB", 2_000_000), ("2GiB", 2**31)],
)
def test_sizes_are_read(given: int | str, expected: int) -> None:
    assert memory.parse_memory("x", given) == expected


@pytest.mark.parametrize(("available", "expected"), [(2**33, 2**30), (2**31, 2**29)])
def test_the_default_is_a_part_of_what_is_available(
    monkeypatch: pytest.MonkeyPatch, available: int, expected: int
) -> None:
    assert memory.available_memory() > 2**20
    monkeypatch.setattr(memory, "available_memory", lambda: available)
    assert memory.default_memory(torch.device("cpu")) == expected


def test_the_default_never_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (images, labels) = small_net("s2", layers=3), small_batches((4,))[0]
    tables = [without(net, ("normal", 0, op)) for op in range(2)]
    expected = MaskedEvaluation(net, tables)(images, labels)
    monkeypatch.setattr(memory, "available_memory", lambda: 2**20)
    found = MaskedEvaluation(net, tables)(images, labels)
    assert found.loss.tolist() == expected.loss.tolist()

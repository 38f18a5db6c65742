# SPDX-License-Identifier: Apache-2.0
"""Processes killed at any moment: the run that goes on ends as one that nobody disturbed."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from killed_runs import KilledRun, differences, kill_at_random, left, start_server

COMMON = ("--limit", "32", "--batch_size", "8", "--threads", "1")
SEARCH = (
    *("search", *COMMON, "--space", "nasbench201", "--init_channels", "4", "--layers", "1"),
    *("--epochs", "2", "--proj_intv", "1", "--derive", "--derive_epochs", "1"),
    *("--derive_channels", "4", "--derive_layers", "1", "--derive_batch_size", "8"),
)
TRAIN = (
    *("train", *COMMON, "--arch", "DARTS_V2", "--init_channels", "4", "--layers", "3"),
    *("--epochs", "2", "--auxiliary", "--cutout", "--cutout_length", "2"),
)
EVERY_STEP = ("--save_every", "0.000001")
# Lines of the log, in the search one of each phase.
MARKS = {
    "search": ("train 000", "project op", "derived network of "),
    "train": ("derived network of ", "train_acc"),
}


class Undisturbed(NamedTuple):
    """A command, what it leaves when nobody disturbs it, and the seconds that it takes."""

    arguments: tuple[str, ...]
    whole: dict[str, Any]
    seconds: float


@pytest.fixture(scope="module", params=[SEARCH, TRAIN], ids=["search", "train"])
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    start_server()
    arguments = (*request.param, *EVERY_STEP)
    run = KilledRun(tmp_path_factory.mktemp("whole") / "run", *arguments)
    begun = time.monotonic()
    run.finish()
    return Undisturbed(arguments, left(run.run), time.monotonic() - begun)


def test_killed_once_in_every_phase(undisturbed: Undisturbed, tmp_path: Path) -> None:
    arguments, whole, _ = undisturbed
    draws = random.Random(0)
    run = KilledRun(tmp_path / "run", *arguments)
    marks = MARKS[arguments[0]]
    for mark in marks:
        run.start()
        run.wait_for(mark)
        assert run.kill(draws.uniform(0, 0.03)), run.output.read_text()
    run.finish()
    assert sum(run.phases.values()) == len(marks)
    assert not differences(left(run.run), whole)


@pytest.mark.parametrize("undisturbed", [TRAIN], ids=["train"], indirect=True)
def test_a_run_killed_before_its_first_checkpoint_begins_again(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    arguments, whole, _ = undisturbed
    run = KilledRun(tmp_path / "run", *arguments)
    run.start()
    run.wait_for("environment = ")
    run.kill(0)
    for path in run.run.glob("checkpoint*"):
        path.unlink()
    run.finish()
    assert "stopped before its first checkpoint: it begins again" in run.output.read_text()
    assert not differences(left(run.run), whole)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_many_random_moments(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """At least 60 kills of searches, at least 10 of them in each phase, and 30 of trainings."""
    arguments, whole, seconds = undisturbed
    kills, phases = (60, ("search", "select", "train")) if arguments[0] == "search" else (30, ())
    draws = random.Random(0)
    hits: Counter[str] = Counter()
    chains, span = 0, seconds / 2
    while sum(hits.values()) < kills or any(hits[phase] < 10 for phase in phases):
        run = KilledRun(tmp_path / f"run{chains}", *arguments)
        kill_at_random(run, draws, span, kills=10)
        assert not differences(left(run.run), whole), run.output.read_text()
        hits += run.phases
        chains += 1
        if sum(run.phases.values()) < 5:  # the machine has become faster than it was
            span *= 0.7
        assert chains < 60, f"the kills hit too rarely: {dict(hits)}"
    print(f"{arguments[0]}: {sum(hits.values())} kills in {chains} runs, by phase {dict(hits)}")

# SPDX-License-Identifier: Apache-2.0
"""darts-fast search in two processes: how it ends, whatever happens, and how it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from killed_runs import differences, left
from worlds import Processes

from darts_fast.cli import main

SEARCH = (
    *("search", "--limit", "32", "--batch_size", "8", "--threads", "1", "--sampling", "epoch"),
    *("--space", "nasbench201", "--init_channels", "4", "--layers", "1", "--epochs", "2"),
    *("--proj_intv", "1", "--proj_crit", "loss"),
)
GO_ON = "torchrun --nproc_per_node 2 -m darts_fast search --resume --save"


def searching(run: Path, *flags: str) -> Processes:
    return Processes.of_command(run.parent / "output", *SEARCH, *flags, "--save", str(run))


def resumed(run: Path) -> Processes:
    arguments = ("search", "--resume", "--save", str(run))
    return Processes.of_command(run.parent / "output", *arguments)


def wait_for(run: Path, processes: Processes, text: str) -> None:
    log = run / "log.txt"
    while processes.alive and not (log.exists() and text in log.read_text()):
        time.sleep(0.002)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = tmp_path_factory.mktemp("whole") / "run"
    processes = searching(run)
    assert processes.wait() == [0, 0], processes.texts
    shown, silent = processes.texts
    assert "genotype = " in shown
    assert silent == ""
    return left(run)


@pytest.mark.parametrize(
    ("mark", "victim"),
    [
        ("train 000", 1),
        pytest.param("project op", 1, marks=pytest.mark.slow),
        pytest.param("selected edge", 0, marks=pytest.mark.slow),
    ],
)
def test_one_killed_ends_the_others_and_the_run_goes_on(
    mark: str, victim: int, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    processes = searching(run, "--save_every", "0.000001")
    wait_for(run, processes, mark)
    processes.signal(victim, signal.SIGKILL)
    statuses = processes.wait()
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] == 1
    last = processes.texts[1 - victim].splitlines()[-1]
    assert last.startswith(
        f"darts-fast: process {1 - victim} of 2: another of the 2 processes of the run is gone or "
        "does not answer ("
    )
    assert last.endswith(f"; go on from the last checkpoint with: {GO_ON} {run}")
    following = resumed(run)
    assert following.wait() == [0, 0], following.texts
    whole = {**undisturbed, "config": {**undisturbed["config"], "save_every": 0.000001}}
    assert not differences(left(run), whole)


@pytest.mark.parametrize(
    ("mark", "told", "phase"),
    [
        pytest.param("train 000", 1, "search", marks=pytest.mark.slow),
        ("project op", 0, "select"),
    ],
)
def test_one_asked_to_stop_stops_all_and_the_run_goes_on(
    mark: str, told: int, phase: str, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    processes = searching(run)
    wait_for(run, processes, mark)
    processes.signal(told, signal.SIGTERM)
    assert processes.wait() == [128 + signal.SIGTERM] * 2, processes.texts
    shown, silent = processes.texts
    by = "SIGTERM" if told == 0 else "a signal to another process"
    assert f"darts-fast: stopped by {by} in phase {phase} after " in shown
    assert shown.rstrip().endswith(f"go on with: {GO_ON} {run}")
    assert silent == ""
    following = resumed(run)
    assert following.wait() == [0, 0], following.texts
    assert not differences(left(run), undisturbed)


def test_a_run_of_two_processes_goes_on_in_one_with_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    processes = searching(run)
    wait_for(run, processes, "train 000")
    processes.signal(0, signal.SIGTERM)
    assert processes.wait() == [143, 143], processes.texts
    assert main(["search", "--resume", "--save", str(run)]) == 0
    expected = "warning: processes of the run was 2 and is now 1; rounding may differ"
    assert expected in capfd.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch_size", "1"), "Invalid value for '--batch_size': 1 is not in the range x>=2."),
        (("--momentum", "-1"), "SearchConfig: momentum must be finite and >= 0, got -1.0"),
        (("--data", "/nowhere"), "/nowhere: data must be 'digits', 'digits16' or a path"),
        ((), "it is not empty; pass --overwrite"),
    ],
)
def test_errors_before_training_are_told_once(
    flags: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "file").touch()
    processes = searching(run, *flags)
    assert processes.wait() == [2, 2]
    shown, silent = processes.texts
    assert message in shown
    assert shown.count("\n") == 1
    assert silent == ""


def test_other_commands_run_in_one_process(tmp_path: Path) -> None:
    processes = Processes.of_command(tmp_path, "train", "--arch", "DARTS_V2")
    assert processes.wait() == [2, 2]
    assert processes.texts == [
        "darts-fast: train: must run in one process, got 2 of torchrun\n",
        "",
    ]


@pytest.mark.slow
def test_torchrun_itself(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """Started, stopped by SIGTERM to torchrun, and gone on."""
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc_per_node", "2", "-m", "darts_fast"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, *SEARCH, "--save", str(run)], env=environment) as first:
        log, end = run / "log.txt", time.monotonic() + 120
        while first.poll() is None and not (log.exists() and "train 000" in log.read_text()):
            assert time.monotonic() < end
            time.sleep(0.002)
        first.terminate()
        assert first.wait(timeout=120) != 0
    assert (run / "checkpoint.pt").exists()
    going_on = [*command, "search", "--resume", "--save", str(run)]
    subprocess.run(going_on, env=environment, check=True, timeout=240)
    assert not differences(left(run), undisturbed)

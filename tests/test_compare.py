# SPDX-License-Identifier: Apache-2.0
"""Grids of searches: what is run, resumed and left alone, and the table of what they found."""

from __future__ import annotations

import csv
import importlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Run as Call
from index_table import write_index_table
from test_report_page import finished, write_run

from darts_fast.cli import main
from darts_fast.cli.grid import GridRun, run_grid
from darts_fast.report.comparison import comparison_figure, groups_of, runs_csv, summary_csv
from darts_fast.report.run import Run
from darts_fast.runs import RunDirectory
from darts_fast.spaces import index_from_arch

# The package has the command under the name of its module.
COMMAND = importlib.import_module("darts_fast.cli.compare")

TINY = [
    *("--space", "nasbench201", "--init_channels", "4", "--layers", "1", "--limit", "32"),
    *("--batch_size", "16", "--epochs", "1", "--proj_intv", "0", "--threads", "1"),
]

# Stands for a search: notes that it runs, then does as its file says.
SCRIPT = """
import json, pathlib, signal, sys, time
path = pathlib.Path(sys.argv[1]); path.mkdir(exist_ok=True)
with open(path.parent / "calls", "a") as calls:
    calls.write(json.dumps([path.name, sys.argv[2:], time.time()]) + "\\n")
order = json.loads((path.parent / "orders").read_text()).get(path.name, "finish")
def stop(*_):
    (path / "checkpoint.pt").write_text("half"); sys.exit(143)
signal.signal(signal.SIGTERM, stop)
if order == "fail":
    sys.exit("darts-fast: no luck today")
for _ in range(600 if order == "meet" else 0):  # until another one runs beside it
    if len((path.parent / "calls").read_text().splitlines()) > 1:
        break
    time.sleep(0.1)
time.sleep({"wait": 60}.get(order, 0.05))
(path / "results.json").write_text("{}")
with open(path.parent / "calls", "a") as calls:
    calls.write(json.dumps([path.name, "end", time.time()]) + "\\n")
"""


@dataclass(frozen=True)
class Scripted(GridRun):
    """A run of the grid whose process is the script above."""

    @property
    def command(self) -> list[str]:
        words = super().command
        return [sys.executable, "-S", "-c", SCRIPT, str(self.path), *words[6:]]


def scripted(folder: Path, *names: str, **orders: str) -> list[GridRun]:
    (folder / "orders").write_text(json.dumps(orders))
    return [Scripted("darts", "magnitude", 0, folder / name, ("--epochs", "2")) for name in names]


def calls(folder: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_what_has_finished_is_not_done_again(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.json").write_text("{}")
    assert run_grid(scripted(tmp_path, "a", "b", "c"), 1, said.append) == ([], None)
    assert [name for name, what, _ in calls(tmp_path) if what != "end"] == ["a", "c"]
    assert calls(tmp_path)[0][1] == ["--epochs", "2"]
    assert said[0] == "1 of 3 runs have finished before"
    assert run_grid(scripted(tmp_path, "a", "b", "c"), 1, said.append) == ([], None)
    assert len(calls(tmp_path)) == 4


def test_a_checkpoint_is_gone_on_with_and_an_empty_start_is_begun_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "checkpoint.pt").write_text("half")
    (tmp_path / "b" / "log.txt").write_text("died before its first checkpoint")
    run_grid(scripted(tmp_path, "a", "b"), 1, lambda line: None)
    starts = {name: what for name, what, _ in calls(tmp_path) if what != "end"}
    assert starts == {"a": ["--resume"], "b": ["--epochs", "2", "--overwrite"]}


def test_a_run_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    said: list[str] = []
    runs = scripted(tmp_path, "a", "b", a="fail")
    failed, signum = run_grid(runs, 1, said.append)
    assert ([run.name for run in failed], signum) == (["a"], None)
    assert "a: failed with status 1: no luck today" in said
    assert runs[1].finished
    assert "no luck today" in runs[0].output.read_text()


def test_so_many_processes_at_a_time(tmp_path: Path) -> None:
    run_grid(scripted(tmp_path, *"abcd", a="meet", b="meet"), 2, lambda line: None)
    events = [(when, 1 if what != "end" else -1) for _, what, when in calls(tmp_path)]
    level, levels = 0, []
    for _, step in sorted(events):
        level += step
        levels.append(level)
    assert max(levels) == 2


def test_a_signal_lets_every_process_save_and_starts_nothing_more(tmp_path: Path) -> None:
    runs = scripted(tmp_path, "a", "b", "c", a="wait", b="wait")

    def interrupt() -> None:
        while not (tmp_path / "calls").exists() or len(calls(tmp_path)) < 2:
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    said: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    failed, signum = run_grid(runs, 2, said.append)
    thread.join()
    assert (failed, signum) == ([], signal.SIGINT)
    assert {"a: stopped", "b: stopped"} <= set(said)
    assert not any(line.startswith("c:") for line in said)
    assert [(run.path / "checkpoint.pt").exists() for run in runs] == [True, True, False]
    assert signal.getsignal(signal.SIGINT) is before
    assert "--resume" in runs[0].command


def in_process(
    runs: Sequence[GridRun], jobs: int, say: Callable[[str], None]
) -> tuple[list[GridRun], None]:
    """`run_grid` without processes."""
    for run in runs:
        if not run.finished:
            assert main(run.command[3:]) == 0
            say(f"{run.name}: done")
    return [], None


def test_compare_from_end_to_end(darts_fast: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(COMMAND, "run_grid", in_process)
    arguments = ("compare", "--methods", "darts,blank", "--selections", "strength")
    status, out, err = darts_fast(*arguments, "--seeds", "0,1", "--out", "grid", *TINY)
    assert (status, err) == (0, "")
    assert out.count(": done") == 4
    for word in ("supernet, %", "skips", "darts", "blank", "strength", "files: grid"):
        assert word in out
    with open("grid/runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["selection"], row["seed"]) for row in rows[:3]] == [
        *[("darts", "strength", "0"), ("darts", "strength", "1"), ("blank", "strength", "0")]
    ]
    config = json.loads(Path("grid/blank-strength-seed1/config.json").read_text())
    assert [config[key] for key in ("method", "select", "seed", "epochs")] == [
        *("blank", "strength", 1, 1)
    ]
    for suffix in ("png", "svg", "pdf"):
        assert Path(f"grid/comparison.{suffix}").stat().st_size > 1000
    # Another seed: only what is new is run.
    status, out, _ = darts_fast(*arguments, "--seeds", "0,1,2", "--out", "grid", *TINY)
    assert status == 0
    assert out.count(": done") == 2
    with open("grid/summary.csv", newline="") as file:
        assert [row["runs"] for row in csv.DictReader(file)] == ["3"] * 2


def test_what_is_found_is_looked_up_in_a_table(
    darts_fast: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = write_index_table(tmp_path / "table.npz")
    monkeypatch.setattr(COMMAND, "run_grid", in_process)
    arguments = ("compare", "--methods", "blank", "--selections", "magnitude,strength")
    arguments = (*arguments, "--seeds", "0", "--table", str(table))
    status, out, err = darts_fast(*arguments, "--out", "grid", *TINY)
    assert (status, err) == (0, "")
    assert "table, %" in out
    with open("grid/runs.csv", newline="") as file:
        for row in csv.DictReader(file):
            index = index_from_arch(row["genotype"])
            assert float(row["table_accuracy"]) == pytest.approx(index / 100)
            assert 0 < float(row["search_seconds"]) <= float(row["seconds"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "darts,fast"], "must be among darts, darts-2nd, "),
        (["--selections", "x"], "must be among perturbation"),
        (["--seeds", "0,-1"], "must be numbers from 0 up, got '-1'"),
        (["--seeds", "0,0"], "must not name anything twice, got '0,0'"),
        (["--jobs", "0"], "0 is not in the range"),
        (["--seed", "3"], "compare: --seed is given by the grid, leave it out"),
        (["--save", "x"], "compare: --save is given by the grid, leave it out"),
        (["--colour", "red"], "No such option"),
        (["--epochs", "many"], "Invalid value for '--epochs'"),
    ],
)
def test_errors_are_one_line_and_run_nothing(
    darts_fast: Call, arguments: list[str], message: str
) -> None:
    status, out, err = darts_fast("compare", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


def test_the_options_of_a_grid_stay(darts_fast: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(COMMAND, "run_grid", lambda runs, jobs, say: ([], None))
    assert darts_fast("compare", "--out", "grid", "--epochs", "2")[0] == 0
    status, _, err = darts_fast("compare", "--out", "grid", "--epochs", "3")
    assert status == 2
    assert "'--epochs 2', which cannot become '--epochs 3'; name another --out" in err


def test_signals_and_failures_are_told(darts_fast: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[Any] = [([], signal.SIGTERM)]
    monkeypatch.setattr(COMMAND, "run_grid", lambda runs, jobs, say: ends[0])
    status, _, err = darts_fast("compare", "--out", "grid")
    assert status == 128 + signal.SIGTERM
    assert "stopped with 0 of 6 runs finished; the same command goes on" in err
    ends[0] = ([GridRun("darts", "magnitude", 0, Path("grid/x"), ())], None)
    status, out, _ = darts_fast("compare", "--out", "grid")
    assert status == 1
    assert "x failed: see grid/x.out" in out


def test_means_and_deviations(tmp_path: Path) -> None:
    accuracies = (90.0, 91.0, 94.0)
    runs = []
    for seed, accuracy in enumerate(accuracies):
        results = finished()
        results["derived"][0]["test_accuracy"] = accuracy
        runs.append(Run.read(write_run(tmp_path / str(seed), results=results, seed=seed)))
    alone = Run.read(write_run(tmp_path / "m", results=finished(), select="magnitude"))
    groups = groups_of([*runs, alone])
    assert [(group.selection, len(group.runs)) for group in groups] == [
        *[("perturbation", 3), ("magnitude", 1)]
    ]
    first, second = groups
    assert first.mean("test_accuracy") == pytest.approx(sum(accuracies) / 3)
    assert first.deviation("test_accuracy") == pytest.approx(statistics.stdev(accuracies))
    assert first.text("test_accuracy") == "91.67 \u00b1 2.08"
    assert second.text("test_accuracy") == "88.50"
    assert math.isnan(second.deviation("test_accuracy"))
    assert first.values("seconds") == [80.0] * 3
    rows = list(csv.DictReader(runs_csv(groups).splitlines()))
    assert [float(row["test_accuracy"]) for row in rows] == [*accuracies, 88.5]
    lines = list(csv.DictReader(summary_csv(groups).splitlines()))
    assert float(lines[0]["test_accuracy_deviation"]) == statistics.stdev(accuracies)
    assert lines[1]["test_accuracy_deviation"] == ""
    left, right = comparison_figure(groups).axes
    assert left.get_xlabel() == "test accuracy, %"
    assert right.get_xlabel() == "skip connections"
    assert list(left.lines[0].get_xdata()) == list(accuracies)


@pytest.mark.slow
def test_processes_are_interrupted_and_go_on(tmp_path: Path) -> None:
    arguments = [
        *(sys.executable, "-m", "darts_fast", "compare", "--selections", "perturbation"),
        *("--seeds", "0,1", "--jobs", "2", "--out", str(tmp_path / "grid"), *TINY),
        *("--epochs", "300"),
    ]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    paths = [tmp_path / "grid" / f"darts-perturbation-seed{seed}" for seed in (0, 1)]
    deadline = time.time() + 120
    while not all(RunDirectory(path).has_checkpoint() for path in paths):
        assert time.time() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 130, out
    assert "stopped with 0 of 2 runs finished; the same command goes on" in out
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "darts-perturbation-seed0: goes on" in done.stdout
    for path in paths:
        history = json.loads((path / "results.json").read_text())["history"]
        assert [row["epoch"] for row in history] == list(range(300))

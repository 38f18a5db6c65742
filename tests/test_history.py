# SPDX-License-Identifier: Apache-2.0
"""The history of a run, after an interruption too, and what status makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Run as Call
from test_cli import TINY, TINY_DERIVE, interrupt_after
from test_report_page import events_of_a_search, finished, write_run

from darts_fast.cli.live import LiveStatus
from darts_fast.cli.status import run_status
from darts_fast.history import append_event, read_events
from darts_fast.report.run import Run
from darts_fast.spaces import NASBENCH201_PRIMITIVES

UNEQUAL = ("time", "seconds", "cpu_seconds", "valid_seconds", "steps", "arguments", "environment")


def test_events_come_back_and_the_last_of_a_name_counts(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert read_events(path) == []
    append_event(path, {"event": "process", "resumed": False})
    for epoch, loss in ((0, 2.0), (1, 1.5), (1, 1.25)):
        append_event(path, {"event": "epoch", "phase": "search", "epoch": epoch, "loss": loss})
    append_event(path, {"event": "epoch", "phase": "tune", "epoch": 1, "loss": 9.0})
    append_event(path, {"event": "process", "resumed": True})
    found = [(e["event"], e.get("phase"), e.get("epoch"), e.get("loss")) for e in read_events(path)]
    assert found == [
        ("process", None, None, None),
        ("epoch", "search", 0, 2.0),
        ("epoch", "search", 1, 1.25),
        ("epoch", "tune", 1, 9.0),
        ("process", None, None, None),
    ]
    assert all(abs(event["time"] - time.time()) < 60 for event in read_events(path))


@pytest.mark.parametrize("rest", ['{"event": "epoch", "ph', "\x00\x00\n", "[1]\n", '{"a": 1}\n'])
def test_what_a_killed_process_left_is_skipped(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "history.jsonl"
    append_event(path, {"event": "phase", "phase": "search"})
    with open(path, "a") as file:
        file.write(rest)
    assert [event["phase"] for event in read_events(path)] == ["search"]
    append_event(path, {"event": "phase", "phase": "select"})
    assert [event["phase"] for event in read_events(path)] == ["search", "select"]


def equal_parts(path: Path) -> list[dict[str, Any]]:
    """The events without what differs between equal runs."""
    return [
        {name: value for name, value in event.items() if name not in UNEQUAL}
        for event in read_events(path / "history.jsonl")
        if event["event"] != "process"
    ]


def test_a_resumed_run_has_the_history_of_a_whole_one(darts_fast: Call) -> None:
    arguments = ("search", *TINY, *TINY_DERIVE, "--save")
    darts_fast(*arguments, "whole")
    whole = equal_parts(Path("whole"))
    kinds = [(event["event"], event.get("phase")) for event in whole]
    assert kinds[:3] == [("epoch", "search"), ("phase", "search"), ("decision", None)]
    assert kinds.count(("decision", None)) == 6
    assert kinds.count(("epoch", "tune")) == 5
    for label in ("perturbation", "magnitude", "random"):
        assert kinds.count(("epoch", f"train {label}")) == 1
    first = whole[0]
    assert len(first["alphas"]["cell"]) == 6
    assert len(first["alphas"]["cell"][0]) == len(NASBENCH201_PRIMITIVES)
    results = json.loads(Path("whole/results.json").read_text())
    assert first["train_acc"] == results["history"][0]["train_acc"]
    assert first["valid_acc"] == results["history"][0]["valid_acc"]
    for event, decision in zip(
        [e for e in whole if e["event"] == "decision"], results["decisions"], strict=True
    ):
        assert {name: event[name] for name in decision} == decision
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 8, signal.SIGINT)
        assert darts_fast(*arguments, "run")[0] == 130
    before = read_events("run/history.jsonl")
    assert before[-1]["event"] == "phase"  # the time of an interrupted phase is not lost
    darts_fast("search", "--resume", "--save", "run")
    done = sorted(map(json.dumps, equal_parts(Path("run"))))
    assert done == sorted(map(json.dumps, whole))
    processes = [e for e in read_events("run/history.jsonl") if e["event"] == "process"]
    assert [event["resumed"] for event in processes] == [False, True]
    assert processes[1]["arguments"] == ["search", "--resume", "--save", "run"]
    assert processes[0]["environment"]["processors"] == os.cpu_count()
    darts_fast(*arguments, "run", "--overwrite", "--select", "magnitude")
    assert "decision" not in {e["event"] for e in read_events("run/history.jsonl")}


def test_every_epoch_is_told_with_speed_and_time_left(darts_fast: Call) -> None:
    status, out, _ = darts_fast(
        "search", *TINY, "--epochs", "3", "--select", "magnitude", "--save", "run"
    )
    assert status == 0
    told = [line for line in out.splitlines() if line.startswith("search: epoch ")]
    assert [line.split(",")[0] for line in told] == [f"search: epoch {n} of 3" for n in (1, 2, 3)]
    assert all(" steps/s, 0:00:0" in line and line.endswith(" left") for line in told)


# status


def live(run: Path, pid: int, **more: Any) -> None:
    state = {"phase": "search", "done": 6, "total": 24, "accuracy": 40.0, "epoch": [1, 4]}
    value = {**state, "per_second": 2.0, "pid": pid, "time": time.time() - 5, **more}
    (run / "status.json").write_text(json.dumps(value))


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_status_of_a_run_under_way(tmp_path: Path, darts_fast: Call) -> None:
    run = write_run(tmp_path / "run", events=events_of_a_search("nasbench201", decided=2))
    live(run, os.getpid())
    status, out, err = darts_fast("status", "run")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == [
        *("run: running", "  search, epoch 1 of 4 done, step 6 of 24, training accuracy 40.0 %")
    ]
    assert lines[2].startswith("  2.0 steps/s, 0:00:09 left in this phase, as of 0:00:0")
    assert lines[3] == (
        "  last epoch, search 3: training 22.00 %, 1.000 nats; held out 21.00 %, 2.100 nats"
    )
    assert lines[4] == "  decisions: 2 of 6"
    assert lines[5].startswith("  genotype = |")
    found = json.loads(darts_fast("status", "--json", "run")[1])
    assert (found["state"], found["seconds_left"], found["epoch"]) == ("running", 9.0, [1, 4])


def test_status_of_runs_that_are_not_under_way(tmp_path: Path, dead: int, darts_fast: Call) -> None:
    stopped = write_run(tmp_path / "stopped", events=events_of_a_search("nasbench201", decided=2))
    live(stopped, dead, time=time.time() - 3600)
    write_run(tmp_path / "new", events=[])
    ended = write_run(tmp_path / "ended", results=finished())
    live(ended, dead)
    status, out, _ = darts_fast("status", "stopped", "new", "ended")
    assert status == 0
    assert "stopped: stopped\n" in out
    assert "last heard of 1:00:0" in out
    assert "go on with: darts-fast search --resume --save stopped" in out
    assert "new: not started\n" in out
    assert "ended: finished\n" in out
    assert run_status(Run.read(ended))["skip_connections"] == 0
    status, _, err = darts_fast("status", "nowhere")
    assert status == 2
    assert "no config.json in it" in err


def test_a_search_keeps_its_status_up_to_date(darts_fast: Call) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 1, signal.SIGTERM)
        darts_fast("search", *TINY, "--save", "run")
    found = json.loads(Path("run/status.json").read_text())
    assert (found["phase"], found["done"], found["total"]) == ("search", 1, 1)
    assert found["pid"] == os.getpid()
    assert "running" in darts_fast("status", "run")[1]  # this process still lives


def test_steps_are_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("darts_fast.cli.live.time.perf_counter", lambda: now[0])
    status = LiveStatus(tmp_path / "status.json")
    assert status.per_second is None

    def written() -> Any:
        return json.loads((tmp_path / "status.json").read_text())

    status.start("search", 10, 100)
    assert written()["per_second"] is None
    for step in range(1, 31):
        now[0] += 0.1
        status.advance(10 + step, 50.0)
    assert 25 <= written()["done"] < 40
    assert written()["per_second"] == pytest.approx(10)
    status.epoch = (1, 4)
    status.stop()
    assert (written()["done"], written()["epoch"], written()["accuracy"]) == (40, [1, 4], 50.0)

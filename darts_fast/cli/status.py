# SPDX-License-Identifier: Apache-2.0
"""``darts-fast status``: how far a run has come, from what it keeps in its directory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import click
from rich.console import Console

from darts_fast.cli.checkpoints import go_on_command
from darts_fast.cli.options import CONTEXT, debug_option
from darts_fast.report.run import Run, open_runs
from darts_fast.runs import STATUS, RunDirectory
from darts_fast.search import genotype_text
from darts_fast.spaces import skip_connections

__all__ = ["run_status", "status"]

_PHASE = {"search": "search", "select": "selection"}


@click.command(context_settings=CONTEXT)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a run, one run a line.")
@debug_option
def status(runs: tuple[str, ...], as_json: bool) -> None:
    """Tell how far runs have come: state, epoch, speed, time left, genotype of this moment.

    A run under way is not disturbed; watch -n 5 darts-fast status RUN follows it.
    """
    console = Console()
    for run in open_runs(runs):
        found = run_status(run)
        lines = [json.dumps(found)] if as_json else _lines(run, found)
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def run_status(run: Run) -> dict[str, Any]:
    """What is known of a run at this moment.

    Returns:
        ``run``, ``state`` (``finished``, ``running``, ``stopped``, or ``not started`` before its
        first phase) and ``decisions`` (made, all); where known ``phase``, ``done`` and ``total``
        (steps), ``epoch`` (done, all), ``per_second``, ``seconds_left`` (of the phase),
        ``accuracy`` (percent, training images of this epoch so far), ``age`` (seconds since the run
        wrote this), ``genotype`` and ``skip_connections``.
    """
    path = run.path / STATUS
    live = RunDirectory(run.path).read_json(STATUS) if path.is_file() else {}
    found: dict[str, Any] = {
        "run": str(run.path),
        "state": _state(run, live),
        "decisions": (len(run.decisions), run.total_decisions),
    }
    for name in ("phase", "done", "total", "epoch", "per_second", "accuracy"):
        if live.get(name) is not None:
            found[name] = live[name]
    if live:
        found["age"] = round(max(0.0, time.time() - live["time"]), 1)
        if live.get("per_second"):
            found["seconds_left"] = round((live["total"] - live["done"]) / live["per_second"], 1)
    genotype = run.genotype
    if genotype is not None:
        found["genotype"] = genotype_text(genotype)
        found["skip_connections"] = skip_connections(genotype)
    return found


def _state(run: Run, live: Mapping[str, Any]) -> str:
    if run.finished:
        return "finished"
    if not live:
        return "not started"
    return "running" if _alive(int(live["pid"])) else "stopped"


def _alive(pid: int) -> bool:
    """Whether a process of this machine has the number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _lines(run: Run, found: Mapping[str, Any]) -> list[str]:
    lines = [f"{found['run']}: {found['state']}"]
    if found["state"] in ("running", "stopped"):
        words = [_PHASE.get(found["phase"], found["phase"])]
        if "epoch" in found:
            words.append("epoch {} of {} done".format(*found["epoch"]))
        words.append(f"step {found['done']:,} of {found['total']:,}")
        if "accuracy" in found:
            words.append(f"training accuracy {found['accuracy']:.1f} %")
        lines.append(f"  {', '.join(words)}")
        lines.append(f"  {_speed(run, found)}")
    lines += _last_epoch(run)
    made, total = found["decisions"]
    if made:
        lines.append(f"  decisions: {made} of {total}")
    if "genotype" in found:
        lines.append(f"  genotype = {found['genotype']}")
        lines.append(f"  skip connections: {found['skip_connections']}")
    return lines


def _speed(run: Run, found: Mapping[str, Any]) -> str:
    ago = timedelta(seconds=round(found["age"]))
    if found["state"] == "stopped":
        go_on = go_on_command("search" if run.searched else "train", run.path)
        return f"last heard of {ago} ago; go on with: {go_on}"
    words = []
    if "per_second" in found:
        left = timedelta(seconds=round(found["seconds_left"]))
        words += [f"{found['per_second']:.1f} steps/s", f"{left} left in this phase"]
    return ", ".join([*words, f"as of {ago} ago"])


def _last_epoch(run: Run) -> list[str]:
    """The last epoch that has ended, of whatever phase."""
    epochs = [event for event in run.events if event["event"] == "epoch"]
    if not epochs:
        return []
    event = epochs[-1]
    words = [f"training {event['train_acc']:.2f} %, {event['train_loss']:.3f} nats"]
    if event.get("valid_acc") is not None:
        words.append(f"held out {event['valid_acc']:.2f} %, {event['valid_loss']:.3f} nats")
    return [f"  last epoch, {event['phase']} {event['epoch'] + 1}: {'; '.join(words)}"]

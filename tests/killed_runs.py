# SPDX-License-Identifier: Apache-2.0
"""Runs of the command line in processes of their own that are killed, and what they leave.

The processes are forked from a server that has imported darts_fast, so that each starts at once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from darts_fast.cli import main
from darts_fast.files import load_saved

_PROCESSES = multiprocessing.get_context("forkserver")
# The other two are what the first step of a run would import.
_PROCESSES.set_forkserver_preload(["darts_fast.cli", "sklearn.datasets", "torch._dynamo"])

# What the log says when a phase begins, by phase in order; what stands before is "start".
PHASES = {"epoch 0 ": "search", "project op": "select", "derived network of ": "train"}


def _run(arguments: list[str], output: str) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    raise SystemExit(main(arguments))


def start_server() -> None:
    """Have the server import what runs need, so that no run's time has it."""
    process = _PROCESSES.Process(target=time.monotonic)
    process.start()
    process.join()


class KilledRun:
    """One run of a command in a directory, whose processes are killed and followed by others."""

    def __init__(self, run: Path, *arguments: str) -> None:
        self.run = run
        self.output = run.with_name(f"{run.name}.output")
        self._arguments = list(arguments)
        self._process: Any = None
        self.phases: Counter[str] = Counter()  # in which the kills hit

    def start(self) -> None:
        """Begin the run, or go on with it if it has begun."""
        where = ["--save", str(self.run)]
        begun = (self.run / "config.json").exists()
        flags = [self._arguments[0], "--resume"] if begun else self._arguments
        self._process = _PROCESSES.Process(
            target=_run, args=([*flags, *where], str(self.output)), daemon=True
        )
        self._process.start()

    def wait(self) -> int:
        """The exit status of the process; negative for a signal's."""
        self._process.join()
        return int(self._process.exitcode)

    def wait_for(self, text: str) -> None:
        """Until the log has the text, or the process has ended."""
        while self._process.is_alive() and text not in self.log:
            time.sleep(0.002)

    def kill(self, after: float) -> bool:
        """SIGKILL after so many seconds; False if the process had ended before."""
        self._process.join(after)
        self._process.kill()
        hit = self.wait() < 0
        if hit:
            self.phases[self.phase] += 1
            self.check_left()
        return hit

    @property
    def log(self) -> str:
        path = self.run / "log.txt"
        return path.read_text() if path.exists() else ""

    @property
    def phase(self) -> str:
        """The latest phase that the run has come to."""
        log = self.log
        return next((PHASES[text] for text in reversed(PHASES) if text in log), "start")

    def check_left(self) -> None:
        """What a kill leaves: once there was a checkpoint there is one, and each is whole."""
        names = ("checkpoint.pt", "checkpoint.previous.pt")
        there = [self.run / name for name in names if (self.run / name).exists()]
        for path in there:
            load_saved(path)
        assert there or self.phase in ("start", "search", "train")

    def finish(self) -> None:
        """Let a last process bring the run to its end."""
        self.start()
        status = self.wait()
        assert status == 0, self.output.read_text()


def kill_at_random(run: KilledRun, draws: random.Random, seconds: float, kills: int) -> None:
    """Kill one process after the other, each within so many seconds, and let the last one end."""
    for _ in range(kills):
        run.start()
        if not run.kill(draws.uniform(0, seconds)):
            assert run.wait() == 0, run.output.read_text()
            return
    run.finish()


def left(run: Path) -> dict[str, Any]:
    """Everything that a finished run has left, but for times and arguments."""
    results = json.loads((run / "results.json").read_text())
    saved = {path.name: load_saved(path) for path in sorted(run.glob("*.pt"))}
    del saved["checkpoint.previous.pt"]  # of the step at which it happened to be saved
    found = {
        "results": results,
        "genotype": (run / "genotype.txt").read_text(),
        "config": json.loads((run / "config.json").read_text()),
        **saved,
    }
    return {name: _without_times(value) for name, value in found.items()}


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        dropped = ("seconds", "cpu_seconds", "arguments")
        return {key: _without_times(v) for key, v in value.items() if key not in dropped}
    return [_without_times(v) for v in value] if isinstance(value, (list, tuple)) else value


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Where two states of tensors and plain values differ in any bit."""
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        pairs = [(f"{path}/{key}", left[key], right[key]) for key in left]
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = [(f"{path}/{i}", a, b) for i, (a, b) in enumerate(zip(left, right, strict=True))]
    elif isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        same = left.dtype == right.dtype and torch.equal(left, right)
        return [] if same else [path]
    else:
        return [] if type(left) is type(right) and left == right else [path]
    return [found for name, a, b in pairs for found in differences(a, b, name)]

# SPDX-License-Identifier: Apache-2.0
"""A grid of searches, one process each; what has finished is not done again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from darts_fast.cli.console import signals_handled
from darts_fast.runs import RESULTS

__all__ = ["GridRun", "run_grid"]

POLL = 0.1  # seconds


@dataclass(frozen=True)
class GridRun:
    """One search of the grid.

    Attributes:
        method, selection, seed: what is its own.
        path: of its directory; what it prints goes to a file beside it, ``NAME.out``.
        arguments: of ``darts-fast search``, all but its directory.
    """

    method: str
    selection: str
    seed: int
    path: Path
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its directory's."""
        return self.path.name

    @property
    def output(self) -> Path:
        """Where what it prints goes."""
        return self.path.with_name(f"{self.name}.out")

    @property
    def finished(self) -> bool:
        """Whether its results are there."""
        return (self.path / RESULTS).is_file()

    @property
    def command(self) -> list[str]:
        """Starts it, or goes on with it where it has left a checkpoint."""
        start = [sys.executable, "-m", "darts_fast", "search", "--save", str(self.path)]
        if any(self.path.glob("checkpoint*.pt")):
            return [*start, "--resume"]
        return [*start, *self.arguments, *(["--overwrite"] if self.path.exists() else [])]


class _Stop:
    """Remembers the signal that asked to stop."""

    signum: int | None = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum


def run_grid(
    runs: Sequence[GridRun], jobs: int, say: Callable[[str], None]
) -> tuple[list[GridRun], int | None]:
    """Run what has not finished, so many processes at a time.

    A signal lets every process save its checkpoint and end; nothing new is started then. A run that
    fails does not end the others.

    Returns:
        The runs that failed, and the signal that ended the grid early, or None.
    """
    waiting = [run for run in runs if not run.finished]
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {len(runs)} runs have finished before")
    running: dict[GridRun, tuple[subprocess.Popen[bytes], float]] = {}
    failed: list[GridRun] = []
    stop, told = _Stop(), False
    with signals_handled({signal.SIGINT: stop, signal.SIGTERM: stop}):
        while running or (waiting and stop.signum is None):
            while waiting and len(running) < jobs and stop.signum is None:
                run = waiting.pop(0)
                running[run] = (_start(run), time.perf_counter())
                say(f"{run.name}: {'goes on' if '--resume' in run.command else 'starts'}")
            if stop.signum is not None and not told:
                told = True
                for process, _ in running.values():
                    process.send_signal(signal.SIGTERM)
            for run, (process, since) in list(running.items()):
                status = process.poll()
                if status is None:
                    continue
                del running[run]
                if status == 0:
                    say(f"{run.name}: finished in {time.perf_counter() - since:.0f} s")
                elif stop.signum is not None:
                    say(f"{run.name}: stopped")
                else:
                    failed.append(run)
                    say(f"{run.name}: failed with status {status}: {_last_line(run.output)}")
            if running:
                time.sleep(POLL)
    return failed, stop.signum


def _start(run: GridRun) -> subprocess.Popen[bytes]:
    with open(run.output, "ab") as output:
        return subprocess.Popen(
            run.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the grid alone, which asks each one once
        )


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("darts-fast: ") if lines else "no output"

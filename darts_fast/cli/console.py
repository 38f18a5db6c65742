# SPDX-License-Identifier: Apache-2.0
"""What a run shows and how it is stopped: progress bars on a terminal, log lines elsewhere,
signals.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from darts_fast.cli.live import LiveStatus
from darts_fast.cli.scalars import Scalars
from darts_fast.environment import environment
from darts_fast.history import HISTORY, append_event
from darts_fast.runs import STATUS, RunDirectory
from darts_fast.search import Reporter

__all__ = [
    "RunReporter",
    "SignalReporter",
    "Stopped",
    "command_arguments",
    "signals_handled",
    "signals_heard",
]

Handler = Callable[[int, FrameType | None], None]

# Lines that are for the log file: a selection writes hundreds of them.
QUIET = ("valid_acc  ", "valid_loss ", "train ", "genotype = ")


class Stopped(Exception):  # noqa: N818  (a request, not an error)
    """The run ended early because of a signal; ``status`` is the process's exit status."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.status = 128 + signum


def command_arguments() -> list[str]:
    """The words after ``darts-fast`` of this call."""
    context = click.get_current_context(silent=True)
    given = None if context is None else getattr(context.obj, "arguments", None)
    return sys.argv[1:] if given is None else list(given)


class _RateColumn(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


class SignalReporter(Reporter):
    """Silent, but asks for what signals ask for.

    Attributes:
        tells: whether a signal is acknowledged on standard error.
        signum: of the signal that asked to stop, or None.
        save_asked: whether SIGUSR1 asked for a checkpoint that is not made yet.
    """

    tells = False

    def __init__(self) -> None:
        self.signum: int | None = None
        self.save_asked = False

    def saved(self) -> None:
        """A checkpoint is made."""
        self.save_asked = False

    def close(self) -> None:
        """The run has ended, however it did."""

    @property
    def saving(self) -> bool:
        return self.save_asked

    @property
    def stopping(self) -> bool:
        return self.signum is not None


class RunReporter(SignalReporter):
    """Writes every line to the run's log, shows progress, and measures each phase.

    Args:
        run: where the log is.
        save_every: seconds after which a checkpoint is wanted inside an epoch; 0: never.
        console: a terminal gets progress bars, anything else the log lines.

    Attributes:
        phase: the phase under way, "" between phases.
        position: ``(done, total)`` of the phase.
        seconds, cpu_seconds: by phase name, summed over all processes that worked on the run.
    """

    tells = True

    def __init__(
        self, run: RunDirectory, console: Console | None = None, *, save_every: float = 0.0
    ) -> None:
        super().__init__()
        self.run = run
        self.save_every = save_every
        self.console = console or Console()
        self.phase = ""
        self.position = (0, 0)
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._saved_at = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._marks = (0.0, 0.0)
        self._live = LiveStatus(run.path / STATUS)
        self._scalars: Scalars | None = None

    def begin(self, settings: Mapping[str, Any], *, resumed: bool = False) -> None:
        """Tell log and history what this process is and does."""
        machine = environment()
        self.log(f"args = {dict(settings)}")
        self.log(f"environment = {machine}")
        if settings.get("tensorboard"):
            self._scalars = Scalars(self.run.path, resumed=resumed)
        self.record(
            {
                "event": "process",
                "arguments": command_arguments(),
                "environment": machine,
                "resumed": resumed,
            }
        )

    def record(self, event: Mapping[str, Any]) -> None:
        append_event(self.run.path / HISTORY, event)
        if self._scalars is not None:
            self._scalars.write(event)
        if event["event"] == "epoch":
            self._epoch_done(event["epoch"] + 1, event["epochs"])

    def log(self, line: str) -> None:
        self.run.log(line)
        if not self.console.is_terminal and not line.startswith(QUIET):
            self.say(line)

    def say(self, line: str) -> None:
        """Show a line as it is."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def start(self, phase: str, total: int, done: int = 0) -> None:
        self.phase = phase
        self.position = (done, total)
        self._marks = (time.perf_counter(), time.process_time())
        self._live.start(phase, done, total)
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _RateColumn(),
                TextColumn("{task.fields[accuracy]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._progress.start()
            self._task = self._progress.add_task(phase, total=total, completed=done, accuracy="")

    def expect(self, total: int) -> None:
        if total == self.position[1]:
            return
        self.position = (self.position[0], total)
        self._live.expect(total)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=total)

    def advance(self, accuracy: float | None = None) -> None:
        done, total = self.position
        self.position = (done + 1, total)
        self._live.advance(done + 1, accuracy)
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)
            if accuracy is not None:
                self._progress.update(self._task, accuracy=f"{accuracy:.1f} %")

    def finish(self) -> None:
        self._account()
        self.phase = ""

    def close(self) -> None:
        """End the phase under way, however it ended; the terminal is usable again."""
        if self.phase:
            self._account()
        if self._scalars is not None:
            self._scalars.close()

    def spent(self) -> dict[str, dict[str, float]]:
        """Wall and CPU seconds by phase up to now."""
        wall, cpu = dict(self.seconds), dict(self.cpu_seconds)
        if self.phase:
            now = (time.perf_counter(), time.process_time())
            wall[self.phase] = wall.get(self.phase, 0.0) + now[0] - self._marks[0]
            cpu[self.phase] = cpu.get(self.phase, 0.0) + now[1] - self._marks[1]
        return {"seconds": wall, "cpu_seconds": cpu}

    def saved(self) -> None:
        super().saved()
        self._saved_at = time.monotonic()

    @property
    def saving(self) -> bool:
        due = 0 < self.save_every <= time.monotonic() - self._saved_at
        return super().saving or due

    def stopped(self, how_to_go_on: str) -> Stopped:
        """The exception that ends the process after an interruption."""
        done, total = self.position
        name = "a signal to another process"
        if self.signum is not None:
            name = signal.Signals(self.signum).name
        return Stopped(
            f"stopped by {name} in phase {self.phase} after {done} of {total} steps; "
            f"{how_to_go_on}",
            self.signum or signal.SIGTERM,
        )

    def _epoch_done(self, epoch: int, epochs: int) -> None:
        """Show how far the phase has come, how fast it is, and how long it will take."""
        self._live.epoch = (epoch, epochs)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=f"{self.phase} {epoch}/{epochs}")
        elif (rate := self._live.per_second) is not None:
            done, total = self.position
            left = timedelta(seconds=round((total - done) / rate))
            self.say(f"{self.phase}: epoch {epoch} of {epochs}, {rate:.1f} steps/s, {left} left")

    def _account(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None
        spent = self.spent()
        self.seconds, self.cpu_seconds = spent["seconds"], spent["cpu_seconds"]
        self._marks = (time.perf_counter(), time.process_time())
        self._live.stop()
        self.record(
            {
                "event": "phase",
                "phase": self.phase,
                "seconds": self.seconds[self.phase],
                "cpu_seconds": self.cpu_seconds[self.phase],
            }
        )


@contextmanager
def signals_handled(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Inside, the handlers are those of their signals; afterwards the earlier ones are again."""
    previous: list[tuple[signal.Signals, Any]] = []
    try:
        for signum, handler in handlers.items():
            previous.append((signum, signal.signal(signum, handler)))
        yield
    finally:
        for signum, handler in previous:
            signal.signal(signum, handler)


@contextmanager
def signals_heard(reporter: SignalReporter) -> Iterator[None]:
    """SIGINT and SIGTERM let the step finish and the checkpoint be saved; a second SIGINT ends at
    once. SIGUSR1 asks for a checkpoint after the step.
    """

    def request(signum: int, frame: FrameType | None) -> None:
        if reporter.stopping and signum == signal.SIGINT:
            raise KeyboardInterrupt
        reporter.signum = signum
        if reporter.tells:  # a buffered stream may be in use right now
            os.write(2, b"\nstopping after this step ...\n")

    def save(signum: int, frame: FrameType | None) -> None:
        reporter.save_asked = True

    handlers: Mapping[signal.Signals, Handler] = {
        signal.SIGINT: request,
        signal.SIGTERM: request,
        signal.SIGUSR1: save,
    }
    try:
        with signals_handled(handlers):
            yield
    finally:
        reporter.close()

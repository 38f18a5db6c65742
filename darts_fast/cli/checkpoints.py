# SPDX-License-Identifier: Apache-2.0
"""Saving, stopping and going on of a run, the same for every command that trains."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from darts_fast.cli.console import RunReporter, SignalReporter, Stopped, signals_heard
from darts_fast.distributed import RankLostError, launcher
from darts_fast.environment import environment
from darts_fast.reporter import Interrupted, NonFiniteLossError
from darts_fast.runs import CHECKPOINT, PREVIOUS, RESULTS, RunDirectory, RunDirectoryError

__all__ = ["Checkpoints", "following", "go_on_command", "of_this_run"]

# Going on is bit for bit only where these are as they were.
ROUNDING = ("threads", "torch", "cpu_capability", "processes")


def go_on_command(command: str, path: object, flags: str = "--resume") -> str:
    """What a user types to go on with the run in the directory `path`."""
    return f"{launcher()} {command} {flags} --save {shlex.quote(str(path))}"


@contextmanager
def _lost(go_on: str) -> Iterator[None]:
    """A RankLostError says how to go on."""
    try:
        yield
    except RankLostError as error:
        raise RankLostError(f"{error}; go on from the last checkpoint with: {go_on}") from error


@contextmanager
def following(reporter: SignalReporter, go_on: str) -> Iterator[None]:
    """As `Checkpoints.guarded`, for a process that saves nothing itself.

    Raises:
        Stopped: a signal ended the run.
        RankLostError: as raised, with the way to go on.
    """
    with signals_heard(reporter), _lost(go_on):
        try:
            yield
        except Interrupted:
            signum = reporter.signum or signal.SIGTERM
            raise Stopped("stopped with the other processes", signum) from None


@contextmanager
def of_this_run(what: str) -> Iterator[None]:
    """A state that cannot be restored is a RunDirectoryError: `what` is of another run."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RunDirectoryError(f"{what}: does not belong to this run ({reason})") from error


class Checkpoints:
    """The checkpoints of one run of a command.

    Args:
        run: where the checkpoints are; locked by this process.
        reporter: knows the time spent, and whether to save or to stop.
        go_on: gives the command that goes on with the run, from its flags ("--resume").
    """

    def __init__(
        self, run: RunDirectory, reporter: RunReporter, go_on: Callable[[str], str]
    ) -> None:
        self.run = run
        self.reporter = reporter
        self._go_on = go_on

    @classmethod
    def of_command(cls, command: str, run: RunDirectory, reporter: RunReporter) -> Checkpoints:
        """Of a command whose runs are named by ``--save``."""
        return cls(run, reporter, lambda flags: go_on_command(command, run.path, flags))

    def save(self, state: Mapping[str, Any]) -> None:
        """Save the state of the command with the time spent and what rounding depends on."""
        self.run.save_checkpoint(
            {"state": dict(state), "environment": environment(), **self.reporter.spent()}
        )
        self.reporter.saved()

    def load(self, restore: Callable[[Any], None], *, previous: bool) -> bool:
        """Hand the last state saved to `restore`; False if the run had not come to saving one.

        previous: take the checkpoint before the last one. It is also taken where the last one is
        missing, as after a kill between the two renames of a save.

        Raises:
            RunDirectoryError: the checkpoint is damaged or does not belong to the run. The message
            says whether the other one can be used, and how.
        """
        run = self.run
        if not run.has_checkpoint() and not previous:
            if (run.path / RESULTS).is_file():
                raise RunDirectoryError(f"checkpoint {run.path / CHECKPOINT}: no such file")
            self.reporter.say("the run was stopped before its first checkpoint: it begins again")
            return False
        name = CHECKPOINT if run.has_checkpoint(CHECKPOINT) and not previous else PREVIOUS
        try:
            saved = run.load_checkpoint(name)
        except RunDirectoryError as error:
            raise RunDirectoryError(f"{error}; {self._other(name)}") from error
        with of_this_run(f"checkpoint {run.path / name}"):
            restore(saved["state"])
            self.reporter.seconds = dict(saved["seconds"])
            self.reporter.cpu_seconds = dict(saved["cpu_seconds"])
            then, now = {"processes": 1, **saved["environment"]}, environment()
        for key in ROUNDING:
            if then.get(key) != now[key]:
                self.reporter.say(
                    f"warning: {key} of the run was {then.get(key)} and is now {now[key]}; "
                    "rounding may differ"
                )
        return True

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Signals ask for a checkpoint or for a stop, and what ends the run early says what is left
        of it.

        Raises:
            Stopped: a signal ended the run, and its state is saved.
            NonFiniteLossError: as raised, with the checkpoint that is kept.
            RankLostError: another process of the run is gone, with the way to go on.
            RunDirectoryError: a file could not be written, with the way to go on.
        """
        with signals_heard(self.reporter), _lost(self._go_on("--resume")):
            try:
                yield
            except Interrupted:
                raise self.reporter.stopped(f"go on with: {self._go_on('--resume')}") from None
            except NonFiniteLossError as error:
                kept = f"; kept: {self.run.path / CHECKPOINT}" if self.run.has_checkpoint() else ""
                raise NonFiniteLossError(f"{error}{kept}") from error
            except OSError as error:
                raise RunDirectoryError(
                    f"{error}; no file was overwritten, once this is mended go on with: "
                    f"{self._go_on('--resume')}"
                ) from error

    def _other(self, name: str) -> str:
        """What can be said of the other checkpoint when the one of that name is damaged."""
        other = PREVIOUS if name == CHECKPOINT else CHECKPOINT
        try:
            self.run.load_checkpoint(other)
        except RunDirectoryError:
            return f"no whole {other} is there either"
        flags = "--resume --previous" if other == PREVIOUS else "--resume"
        return f"{other} is whole, go on from it with: {self._go_on(flags)}"

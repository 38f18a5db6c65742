# SPDX-License-Identifier: Apache-2.0
"""How a long phase tells what it does and is told to save or to stop; the base class is silent and
never asks for either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Asked", "Asks", "Interrupted", "NonFiniteLossError", "Reporter", "save_or_stop"]


class Interrupted(Exception):  # noqa: N818  (a request, not an error)
    """The run was asked to stop and has stopped at a point from which it can go on."""


class NonFiniteLossError(ArithmeticError):
    """A training loss or its gradient became NaN or infinite."""


class Reporter:
    """Override what is of interest."""

    def log(self, line: str) -> None:
        """One line for the log."""

    def record(self, event: Mapping[str, Any]) -> None:
        """One event for the run's history, see `darts_fast.history`."""

    def start(self, phase: str, total: int, done: int = 0) -> None:
        """A phase of ``total`` steps begins, ``done`` of them behind it."""

    def expect(self, total: int) -> None:
        """The phase under way is now of ``total`` steps."""

    def advance(self, accuracy: float | None = None) -> None:
        """One step is done; ``accuracy`` is a running percentage."""

    def finish(self) -> None:
        """The phase is over."""

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is wanted at the next possible point."""
        return False

    @property
    def stopping(self) -> bool:
        """Whether the run should stop at the next possible point."""
        return False


class Asks(Protocol):
    """What says whether to save or to stop: a `Reporter`, or an `Asked`."""

    @property
    def saving(self) -> bool: ...

    @property
    def stopping(self) -> bool: ...


@dataclass(frozen=True)
class Asked:
    """What processes that share a step have agreed on: what any of their reporters asks for."""

    saving: bool
    stopping: bool


def save_or_stop(asks: Asks, checkpoint: Callable[[], object]) -> None:
    """What is asked for after a step, when the state is whole.

    Raises:
        Interrupted: to stop; the checkpoint is made.
    """
    stopping = asks.stopping  # asked once: a signal may come at any moment
    if stopping or asks.saving:
        checkpoint()
    if stopping:
        raise Interrupted

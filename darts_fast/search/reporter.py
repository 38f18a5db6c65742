# SPDX-License-Identifier: Apache-2.0
"""How a long phase tells what it does and is told to stop; the base class is silent and never
stops.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Interrupted", "NonFiniteLossError", "Reporter"]


class Interrupted(Exception):  # noqa: N818  (a request, not an error)
    """The run was asked to stop and has stopped at a point from which it can go on."""


class NonFiniteLossError(ArithmeticError):
    """The training loss became NaN or infinite."""


class Reporter:
    """Override what is of interest."""

    def log(self, line: str) -> None:
        """One line for the log."""

    def record(self, event: Mapping[str, Any]) -> None:
        """One event for the run's history, see `darts_fast.history`."""

    def start(self, phase: str, total: int, done: int = 0) -> None:
        """A phase of ``total`` steps begins, ``done`` of them behind it."""

    def advance(self, accuracy: float | None = None) -> None:
        """One step is done; ``accuracy`` is a running percentage."""

    def finish(self) -> None:
        """The phase is over."""

    @property
    def stopping(self) -> bool:
        """Whether the run should stop at the next possible point."""
        return False

# SPDX-License-Identifier: Apache-2.0
"""Where a run is at this moment, in a small file that others may read (``darts-fast status``)."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from darts_fast.files import atomic_write

__all__ = ["LiveStatus"]

EVERY = 2.0  # seconds from one write to the next


class LiveStatus:
    """Keeps ``status.json`` up to date: at most one write in two seconds, so that a step costs
    nothing.

    Args:
        path: of the file; it is made when the first phase starts.

    Attributes:
        epoch: ``(epochs done, epochs)`` of the phase, None where it has none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epoch: tuple[int, int] | None = None
        self._state: dict[str, Any] = {}
        self._began = (0.0, 0)
        self._written = 0.0

    def start(self, phase: str, done: int, total: int) -> None:
        """A phase of ``total`` steps begins."""
        self.epoch = None
        self._began = (time.perf_counter(), done)
        self._state = {"phase": phase, "done": done, "total": total, "accuracy": None}
        self._write("running")

    def expect(self, total: int) -> None:
        """The phase is now of ``total`` steps."""
        self._state["total"] = total

    def advance(self, done: int, accuracy: float | None) -> None:
        """So many steps are done."""
        self._state["done"] = done
        if accuracy is not None:
            self._state["accuracy"] = accuracy
        if time.perf_counter() - self._written >= EVERY:
            self._write("running")

    @property
    def per_second(self) -> float | None:
        """Steps that this process does in a second of this phase; None before the first."""
        seconds = time.perf_counter() - self._began[0]
        steps = self._state.get("done", 0) - self._began[1]
        return steps / seconds if steps > 0 and seconds > 0 else None

    def stop(self) -> None:
        """The phase is over, at its end or before."""
        self._write("stopped")

    def _write(self, state: str) -> None:
        self._written = time.perf_counter()
        value = {
            **self._state,
            "state": state,
            "epoch": self.epoch,
            "per_second": self.per_second,
            "pid": os.getpid(),
            "time": time.time(),
        }
        atomic_write(self.path, json.dumps(value) + "\n")

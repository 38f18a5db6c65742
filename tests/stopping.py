# SPDX-License-Identifier: Apache-2.0
"""A run that is asked to stop."""

from __future__ import annotations

from darts_fast.reporter import Reporter


class StopAfter(Reporter):
    """Asks to stop after a number of steps and forwards, counted over both phases."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, accuracy: float | None = None) -> None:
        self.left -= 1

    @property
    def stopping(self) -> bool:
        return self.left <= 0

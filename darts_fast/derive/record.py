# SPDX-License-Identifier: Apache-2.0
"""The epochs of a derived network's training as events of a history (`darts_fast.history`)."""

from __future__ import annotations

import time
from typing import Any

from darts_fast.derive.train import EpochResult

__all__ = ["EpochEvents"]


class EpochEvents:
    """Makes the event of every epoch; its seconds are those since the event before it, with the
    evaluation on the test images.

    Args:
        phase: of the events.
        epochs, steps: of the training, and of one epoch.
    """

    def __init__(self, phase: str, epochs: int, steps: int) -> None:
        self._fixed = {"event": "epoch", "phase": phase, "epochs": epochs, "steps": steps}
        self._mark = time.perf_counter()

    def __call__(self, epoch: EpochResult) -> dict[str, Any]:
        """The event of an epoch that has just ended."""
        since, self._mark = self._mark, time.perf_counter()
        return {
            **self._fixed,
            "epoch": epoch.epoch,
            "seconds": round(self._mark - since, 4),
            "learning_rate": epoch.learning_rate,
            "train_loss": epoch.train_loss,
            "train_acc": epoch.train_accuracy,
            "valid_loss": epoch.test_loss,
            "valid_acc": epoch.test_accuracy,
        }

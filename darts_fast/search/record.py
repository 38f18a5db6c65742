# SPDX-License-Identifier: Apache-2.0
"""The events of a search for its history (`darts_fast.history`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from darts_fast.reporter import Reporter
from darts_fast.search.trainer import Trainer
from darts_fast.selection import Decision

__all__ = ["DecisionRecorder", "EpochEvent"]


class EpochEvent:
    """The event of one epoch, filled in as the epoch goes on; made when it begins.

    Attributes:
        fields: of the event.
    """

    def __init__(self, phase: str, trainer: Trainer, epochs: int) -> None:
        self.fields: dict[str, Any] = {
            "event": "epoch",
            "phase": phase,
            "epoch": trainer.epoch,
            "epochs": epochs,
            "learning_rate": trainer.learning_rate,
        }
        self._trainer = trainer
        self._steps = trainer.epoch_steps - trainer.step
        self._mark = time.perf_counter()

    def trained(self) -> None:
        """The steps are done. An epoch resumed in its middle counts the rest of them."""
        alphas = self._trainer.net.alphas()
        self.fields.update(
            steps=self._steps,
            seconds=self._lap(),
            train_loss=self._trainer.loss,
            train_acc=self._trainer.accuracy,
            alphas={name: alpha.detach().cpu().tolist() for name, alpha in alphas.items()},
        )

    def validated(self, accuracy: float, loss: float) -> None:
        """The network has been evaluated on the validation half."""
        self.fields.update(valid_acc=accuracy, valid_loss=loss, valid_seconds=self._lap())

    def _lap(self) -> float:
        since, self._mark = self._mark, time.perf_counter()
        return round(self._mark - since, 4)


class DecisionRecorder:
    """Records the decisions of a selection as they are made."""

    def __init__(self) -> None:
        self._recorded = 0
        self._mark = time.perf_counter()

    def skip(self, decisions: int) -> None:
        """So many decisions are of an earlier process, which has recorded them."""
        self._recorded = decisions

    def decisions(self, made: Sequence[Decision], genotype: str, reporter: Reporter) -> None:
        """Record the decisions that are new, and the genotype that the network has with them; the
        time since the last call was theirs.
        """
        since, self._mark = self._mark, time.perf_counter()
        new = made[self._recorded :]
        for index, decision in enumerate(new, start=self._recorded):
            reporter.record(
                {
                    "event": "decision",
                    "index": index,
                    "seconds": round((self._mark - since) / len(new), 4),
                    "genotype": genotype,
                    **asdict(decision),
                }
            )
        self._recorded = len(made)

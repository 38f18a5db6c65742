# SPDX-License-Identifier: Apache-2.0
"""Removals of operations, scored by each rival: eager by a loop of forwards, as DARTS-PT does."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from rivals import backend
from supernets import SupernetCase
from torch import Tensor, nn

from darts_fast.backend import use_backend
from darts_fast.selection.engine import MaskedEvaluation
from darts_fast.selection.removals import every_removal

Tables = Sequence[Mapping[str, Tensor]]


class RemovalCase(SupernetCase):
    """One supernet in train mode, one batch, and the tables of all its removals."""

    def __init__(self, rival: str, batch: int, space: str = "s5") -> None:
        super().__init__(rival, batch, space)
        self.rival = rival
        weights = self.net.edge_weights()
        self.removals = {
            removal.places[0]: removal.table(weights) for removal in every_removal(self.net.space)
        }

    def of_edge(self, cell_type: str, edge: int) -> Tables:
        """Each operation of one edge."""
        return [table for place, table in self.removals.items() if place[:2] == (cell_type, edge)]

    def every(self) -> Tables:
        """The network as it is, and each operation of each edge."""
        return [{}, *self.removals.values()]

    def scores(self, tables: Tables) -> tuple[Tensor, Tensor]:
        """Loss, summed over the images, and images classified right, per table."""
        if self.rival == "fused":
            found = MaskedEvaluation(self.net, tables)(self.images, self.labels)
            return found.loss, found.correct
        return self.loop(tables)

    def loop(self, tables: Tables) -> tuple[Tensor, Tensor]:
        """The same by one full forward per table."""
        losses, correct = [], []
        with torch.no_grad(), use_backend(backend(self.rival)):
            for table in tables:
                logits = self.net(self.images, weights=table)
                loss = nn.functional.cross_entropy(logits.double(), self.labels, reduction="sum")
                losses.append(float(loss))
                correct.append(int((logits.argmax(1) == self.labels).sum()))
        return torch.tensor(losses, dtype=torch.float64), torch.tensor(correct)


@functools.cache
def assert_equal_scores(rival: str) -> None:
    """The rival's losses are those of the eager loop, on a small batch. Once per process."""
    eager, other = (RemovalCase(name, 4) for name in ("eager", rival))
    tables = [{}, *other.of_edge("normal", 7), *other.of_edge("reduce", 2)]
    expected, _ = eager.scores(tables)
    found, _ = other.scores(tables)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)

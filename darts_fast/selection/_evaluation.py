# SPDX-License-Identifier: Apache-2.0
"""Scores of one batch under many tables, one full forward for each: the evaluator of races.

The batched evaluator has the same names; whoever uses these imports them from one place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from darts_fast.nn import Supernet
from darts_fast.selection.tables import Table
from darts_fast.selection.tables import _keyed_draws as keyed_draws
from darts_fast.selection.tables import _untouched as untouched

__all__ = ["BatchScores", "MaskedEvaluation", "keyed_draws", "untouched"]


@dataclass(frozen=True)
class BatchScores:
    """What R tables did on one batch.

    Attributes:
        loss: float64 ``[R]``, summed over the images.
        correct: int64 ``[R]``, images classified right.
    """

    loss: Tensor
    correct: Tensor


class MaskedEvaluation:
    """The network under each of several tables; it is left as it was.

    Args:
        net: a supernet.
        tables: edge weights by cell type, as `score_tables` takes them.
        bn: ``"batch"``, ``"batch_updating"`` or ``"running"``, see `score_tables`.
        max_memory: not needed here, where tables are evaluated one by one.
        seed: noise operations draw from a generator keyed by (seed, batch, operation); None lets
            them draw from the global state.
        between: called after every forward; what it raises ends the evaluation.

    Attributes:
        batches: number of the next batch, for the noise operations; calls count it up.
    """

    def __init__(
        self,
        net: Supernet,
        tables: Sequence[Table],
        *,
        bn: str = "batch",
        max_memory: int | None = None,
        seed: int | None = 0,
        between: Callable[[], None] | None = None,
    ) -> None:
        self.net = net
        self.tables = list(tables)
        self.bn = bn
        self.seed = seed
        self.between = between
        self.batches = 0

    def __call__(
        self, images: Tensor, labels: Tensor, rows: Sequence[int] | None = None
    ) -> BatchScores:
        """Score tables `rows` (default all) on images ``[N, 3, H, W]`` with labels ``[N]``."""
        chosen = range(len(self.tables)) if rows is None else rows
        parameter = next(self.net.parameters())
        images = images.to(parameter.device, parameter.dtype)
        labels = labels.to(parameter.device)
        loss, correct = [], []
        with untouched(self.net, self.bn, keep_rng=self.seed is not None), torch.no_grad():
            for row in chosen:
                with keyed_draws(self.net, self.seed, self.batches):
                    logits = self.net(images, weights=self.tables[row])
                loss.append(functional.cross_entropy(logits.double(), labels, reduction="sum"))
                correct.append((logits.argmax(1) == labels).sum())
                if self.between is not None:
                    self.between()
        self.batches += 1
        return BatchScores(torch.stack(loss).cpu(), torch.stack(correct).cpu())

# SPDX-License-Identifier: Apache-2.0
"""Loss and accuracy of a supernet under changed edge weights: the measurements that selection
decides by.

A *table* maps cell types to edge weights ``[edges, ops]``; cell types it leaves out keep the
network's own. Scoring reads the network and leaves it as it was: buffers, training flags and the
random state are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from darts_fast.distributed import ALONE, World
from darts_fast.nn import Supernet
from darts_fast.selection.engine import BN_MODES, MaskedEvaluation
from darts_fast.selection.shared import shared_scores

__all__ = ["Batch", "Difference", "Score", "Table", "TableScores", "score_tables"]

# Batches for each process from one exchange of scores to the next, which is when a stop is noticed.
ROUND = 4

Batch = tuple[Tensor, Tensor]
Table = Mapping[str, Tensor]


@dataclass(frozen=True)
class Score:
    """Loss (mean over images) and accuracy (percent), each with its standard error."""

    loss: float
    accuracy: float
    loss_stderr: float
    accuracy_stderr: float


@dataclass(frozen=True)
class Difference(Score):
    """Scores of one table less those of another on the same batches, and their standard errors.

    The errors are those of the paired differences, with the batch as the unit: what both tables
    find hard in a batch does not enter them.
    """


@dataclass(frozen=True)
class TableScores:
    """What ``T`` tables did on ``B`` batches.

    Standard errors take the batch as the unit, because batch statistics couple the images of a
    batch: with batch sums ``s_b`` over ``n_b`` images and mean ``m``, ``sqrt(B / (B - 1) * sum (s_b
        - n_b m)^2) / sum n_b``; NaN for one batch.

    Attributes:
        batch_loss: ``[T, B]`` float64, summed over the images of the batch.
        batch_correct: ``[T, B]`` float64, images classified right.
        batch_images: ``[B]`` float64.
    """

    batch_loss: Tensor
    batch_correct: Tensor
    batch_images: Tensor

    @property
    def images(self) -> int:
        """Images seen by each table."""
        return int(self.batch_images.sum())

    @property
    def loss(self) -> Tensor:
        """``[T]``, mean over images."""
        return self.batch_loss.sum(1) / self.batch_images.sum()

    @property
    def accuracy(self) -> Tensor:
        """``[T]``, percent."""
        return 100 * self.batch_correct.sum(1) / self.batch_images.sum()

    @property
    def loss_stderr(self) -> Tensor:
        """``[T]``, standard error of :attr:`loss`."""
        return self._stderr(self.batch_loss)

    @property
    def accuracy_stderr(self) -> Tensor:
        """``[T]``, standard error of :attr:`accuracy`, percent."""
        return 100 * self._stderr(self.batch_correct)

    def score(self, table: int) -> Score:
        """The four numbers of one table."""
        columns = (self.loss, self.accuracy, self.loss_stderr, self.accuracy_stderr)
        return Score(*(float(column[table]) for column in columns))

    def difference(self, one: int, other: int) -> Difference:
        """Scores of table ``one`` less those of table ``other``."""
        loss, correct = (
            (sums[one] - sums[other]).unsqueeze(0) for sums in (self.batch_loss, self.batch_correct)
        )
        pair = TableScores(loss, correct, self.batch_images)
        score = pair.score(0)
        return Difference(score.loss, score.accuracy, score.loss_stderr, score.accuracy_stderr)

    def _stderr(self, sums: Tensor) -> Tensor:
        batches = self.batch_images.numel()
        if batches < 2:
            return torch.full((sums.shape[0],), float("nan"), dtype=torch.float64)
        images = self.batch_images
        deviations = sums - images * (sums.sum(1, keepdim=True) / images.sum())
        return (deviations.square().sum(1) * batches / (batches - 1)).sqrt() / images.sum()


def score_tables(
    net: Supernet,
    batches: Iterable[Batch],
    tables: Sequence[Table],
    *,
    bn: str = "batch",
    seed: int | None = 0,
    between: Callable[[], None] | None = None,
    max_memory: int | str | None = None,
    world: World = ALONE,
) -> TableScores:
    """Evaluate the network under every table on the same batches (`MaskedEvaluation`).

    Tables that are equal are evaluated once.

    Args:
        net: a supernet.
        batches: ``(images, labels)``.
        tables: edge weights by cell type; ``{}`` is the network as it is.
        bn: ``"batch"`` normalises with batch statistics and leaves the running ones alone;
            ``"batch_updating"`` lets the running statistics move (the original's behaviour);
            ``"running"`` normalises with the running ones.
        seed: noise operations draw from a generator keyed by (seed, batch, operation), the same for
            every table, and the global random state is put back; None lets all draws come from the
            global state as they fall.
        between: called once for every table and batch that was evaluated; what it raises ends the
            scoring, and the network is still put back.
        max_memory: bytes, or a text like ``"2GiB"``, that scoring may need beyond the network and
            the batches; default a quarter of what is available, at most 1 GiB, or on a CUDA device
            half of what is free there.
        world: processes that share the work, each with the same arguments, and get the same scores
            (`darts_fast.selection.shared`). Some batches for each of them are held at a time.

    Raises:
        ValueError: no batches, no tables, an unknown ``bn``, or a ``max_memory`` that does not hold
            one table.
    """
    if bn not in BN_MODES:
        raise ValueError(f"score_tables: bn must be one of {', '.join(BN_MODES)}, got {bn!r}")
    if not tables:
        raise ValueError("score_tables: tables must not be empty, got 0 tables")
    evaluate = MaskedEvaluation(
        net, tables, bn=bn, max_memory=max_memory, seed=seed, between=between
    )
    losses: list[Tensor] = []
    correct: list[Tensor] = []
    sizes: list[float] = []
    rest, rows = iter(batches), range(len(tables))
    while group := list(islice(rest, 1 if world.alone else ROUND * world.size)):
        for scores in shared_scores(evaluate, world, group, len(sizes), rows):
            losses.append(scores.loss)
            correct.append(scores.correct.double())
        sizes += [float(len(labels)) for _, labels in group]
    if not sizes:
        raise ValueError("score_tables: batches must not be empty, got 0 batches")
    return TableScores(
        batch_loss=torch.stack(losses, dim=1),
        batch_correct=torch.stack(correct, dim=1),
        batch_images=torch.tensor(sizes, dtype=torch.float64),
    )

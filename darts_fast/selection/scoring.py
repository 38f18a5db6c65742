# SPDX-License-Identifier: Apache-2.0
"""One comparison of removals: score the candidates, or race them, and name the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from darts_fast.distributed import ALONE, World
from darts_fast.nn import Supernet
from darts_fast.seeding import generator
from darts_fast.selection.engine import MaskedEvaluation
from darts_fast.selection.race import RaceConfig, race
from darts_fast.selection.shared import shared_scores
from darts_fast.selection.tables import Batch, Table, TableScores, score_tables

__all__ = ["BatchSource", "Question", "Verdict", "full_pass", "raced"]

BatchSource = Sequence[Batch] | Callable[[], Iterable[Batch]]


@dataclass(frozen=True)
class Question:
    """What is asked of a set of candidates.

    Attributes:
        criterion: ``"acc"`` or ``"loss"``.
        most: whether the candidate is wanted whose removal hurts most (the first of equals), else
            the one whose removal hurts least (the last of equals).
        place: for messages.
        prices: taken from the harm of each candidate, see `limits`; default nothing.
    """

    criterion: str
    most: bool
    place: str
    prices: Sequence[float] | None = None

    def best(self, loss: Sequence[float], accuracy: Sequence[float]) -> int:
        """The candidate wanted; raises as `harm`."""
        harm = self.harm(loss, accuracy)
        if self.most:
            return harm.index(max(harm))
        return len(harm) - 1 - harm[::-1].index(min(harm))

    def harm(self, loss: Sequence[float], accuracy: Sequence[float]) -> list[float]:
        """Per candidate, larger where its removal hurts more, less its price; a loss that is not
        finite counts as infinite.

        Raises:
            FloatingPointError: by loss, and no candidate has a finite one.
        """
        if self.criterion == "acc":
            harm = [-value for value in accuracy]
        else:
            self.check_finite(loss)
            harm = [value if math.isfinite(value) else math.inf for value in loss]
        prices = self.prices or [0.0] * len(harm)
        return [value - price for value, price in zip(harm, prices, strict=True)]

    def check_finite(self, loss: Sequence[float]) -> None:
        """Raise FloatingPointError if no loss is finite."""
        if not any(math.isfinite(value) for value in loss):
            raise FloatingPointError(
                f"perturbation: some removal must leave a finite loss, got {list(loss)} "
                f"for {self.place}"
            )


@dataclass(frozen=True)
class Verdict:
    """The answer, and what it rests on.

    Attributes:
        best: the candidate wanted.
        loss, accuracy, loss_stderr, accuracy_stderr: of each candidate over the images it saw.
        images: seen by each candidate.
        outcome: ``"full"`` for a full pass, else one of `race.OUTCOMES`.
    """

    best: int
    loss: list[float]
    accuracy: list[float]
    loss_stderr: list[float]
    accuracy_stderr: list[float]
    images: list[int]
    outcome: str = "full"


def full_pass(
    net: Supernet,
    batches: BatchSource,
    tables: Sequence[Table],
    question: Question,
    *,
    seed: int,
    between: Callable[[], None] | None,
    world: World = ALONE,
) -> Verdict:
    """All candidates on the same batches, shared by the processes of the world, or, where `batches`
    is a function, each on a pass of its own with running statistics moving, as the published code
    does; that is not shared.
    """
    if not callable(batches):
        scores = score_tables(net, batches, tables, seed=seed, between=between, world=world)
    else:
        passes = [
            score_tables(
                net,
                batches(),
                [table],
                bn="batch_updating",
                seed=None,
                between=between,
                world=world,
            )
            for table in tables
        ]
        scores = TableScores(
            batch_loss=torch.cat([one.batch_loss for one in passes]),
            batch_correct=torch.cat([one.batch_correct for one in passes]),
            batch_images=passes[0].batch_images,
        )
    loss, accuracy = scores.loss.tolist(), scores.accuracy.tolist()
    return Verdict(
        best=question.best(loss, accuracy),
        loss=loss,
        accuracy=accuracy,
        loss_stderr=scores.loss_stderr.tolist(),
        accuracy_stderr=scores.accuracy_stderr.tolist(),
        images=[scores.images] * len(tables),
    )


def raced(
    net: Supernet,
    batches: Sequence[Batch],
    tables: Sequence[Table],
    question: Question,
    config: RaceConfig,
    *,
    seed: int,
    stream: str,
    between: Callable[[], None] | None,
    shares: Sequence[float] | None = None,
    world: World = ALONE,
) -> Verdict:
    """The candidates against each other until one is surely the best (`selection.race`).

    Args:
        seed: of the noise operations and, with `stream`, of the order of the batches.
        shares: of the error rate, see `race`.
        world: processes that share the candidates of every batch.
    """
    evaluation = MaskedEvaluation(net, tables, seed=seed, between=between)
    loss = torch.full((len(tables), len(batches)), float("nan"), dtype=torch.float64)
    correct = loss.clone()
    by_loss = question.criterion == "loss"

    def evaluate(batch: int, rows: list[int]) -> list[float]:
        (scores,) = shared_scores(evaluation, world, [batches[batch]], batch, rows)
        loss[rows, batch] = scores.loss
        correct[rows, batch] = scores.correct.double()
        return (loss if by_loss else -correct)[rows, batch].tolist()

    order = torch.randperm(len(batches), generator=generator(seed, stream)).tolist()
    sizes = [len(labels) for _, labels in batches]
    result = race(
        evaluate,
        sizes,
        order,
        len(tables),
        config,
        largest=question.most,
        last=not question.most,
        margin=config.margin_of(question.criterion),
        counts=not by_loss,
        shares=shares,
    )
    seen = ~correct.isnan()
    columns = [
        TableScores(
            batch_loss=loss[row, seen[row]][None],
            batch_correct=correct[row, seen[row]][None],
            batch_images=torch.tensor(sizes, dtype=torch.float64)[seen[row]],
        )
        for row in range(len(tables))
    ]
    scores = [column.score(0) for column in columns]
    if by_loss:
        question.check_finite([score.loss for score in scores])
    return Verdict(
        best=result.winner,
        loss=[score.loss for score in scores],
        accuracy=[score.accuracy for score in scores],
        loss_stderr=[score.loss_stderr for score in scores],
        accuracy_stderr=[score.accuracy_stderr for score in scores],
        images=result.images,
        outcome=result.outcome,
    )

# SPDX-License-Identifier: Apache-2.0
"""Scoring shared by the processes of a world.

The scores of a table depend on network, batch and table alone, so that it does not matter which
process evaluates it: each takes its share, and all of them get the scores that one would.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from darts_fast.distributed import World
from darts_fast.selection.engine import BatchScores, MaskedEvaluation

__all__ = ["shared_scores"]


def shared_scores(
    evaluation: MaskedEvaluation,
    world: World,
    batches: Sequence[tuple[Tensor, Tensor]],
    first: int,
    rows: Sequence[int],
) -> list[BatchScores]:
    """What the tables `rows` do on each of consecutive batches, in every process.

    Where the order of evaluations matters (running statistics that move, draws from the global
    random state) each process does all of them.

    Args:
        evaluation: the same in all processes, but for its `between`, which is called once for every
            table and batch, whichever process evaluates it.
        batches: as many as there are processes, or any other number.
        first: the number of the first batch, for the noise operations.

    Raises:
        Interrupted: in all processes, where `between` raised it in one.
        RankLostError: another process is gone.
    """

    def scores(index: int, some: Sequence[int]) -> BatchScores:
        evaluation.batches = first + index
        return evaluation(*batches[index], some)

    def all_of_them() -> list[BatchScores]:
        return [scores(index, rows) for index in range(len(batches))]

    if world.alone or evaluation.bn == "batch_updating" or evaluation.seed is None:
        return world.same(all_of_them)
    twins = evaluation.twins(rows)
    pairs = [(index, row) for index in range(len(batches)) for row in dict.fromkeys(twins)]
    own = pairs[world.share(len(pairs))]

    def own_share() -> list[tuple[float, int]]:
        found: list[tuple[float, int]] = []
        for index in dict.fromkeys(index for index, _ in own):
            part = scores(index, [row for batch, row in own if batch == index])
            found += zip(part.loss.tolist(), part.correct.tolist(), strict=True)
        for _ in range(len(pairs) - len(own) if evaluation.between is not None else 0):
            assert evaluation.between is not None
            evaluation.between()
        return found

    parts = world.parts(own_share)
    sums = dict(zip(pairs, (pair for part in parts for pair in part), strict=True))
    return [
        BatchScores(
            torch.tensor([sums[index, row][0] for row in twins], dtype=torch.float64),
            torch.tensor([sums[index, row][1] for row in twins], dtype=torch.int64),
        )
        for index in range(len(batches))
    ]

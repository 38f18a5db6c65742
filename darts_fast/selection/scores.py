# SPDX-License-Identifier: Apache-2.0
"""Scores of single removals, the measurements that perturbation-based selection decides by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_fast.nn import Supernet
from darts_fast.selection.tables import Batch, Score, Table, score_tables

__all__ = ["RemovalScores", "removal_scores"]


@dataclass(frozen=True)
class RemovalScores:
    """Scores of single removals; row ``i`` is edge ``edges[i]``, NaN where an edge has no such
    operation.

    Attributes:
        cell_type: the cell type the removals were made in.
        edges: edge indices, as asked for.
        loss: ``[edges, ops]`` float64, mean over images, with operation (edge, op) removed.
        accuracy: ``[edges, ops]``, percent.
        loss_stderr: ``[edges, ops]``, the batch as the unit (see :class:`TableScores`).
        accuracy_stderr: ``[edges, ops]``, percent.
        base: the network with nothing removed.
        images: images seen by each removal.
        batch_loss: ``[edges, ops, batches]``, loss summed over the images of each batch: the
            differences of two candidates are paired here.
        batch_correct: ``[edges, ops, batches]``, images classified right.
        batch_images: ``[batches]``.
    """

    cell_type: str
    edges: tuple[int, ...]
    loss: Tensor
    accuracy: Tensor
    loss_stderr: Tensor
    accuracy_stderr: Tensor
    base: Score
    images: int
    batch_loss: Tensor
    batch_correct: Tensor
    batch_images: Tensor


def removal_scores(
    net: Supernet,
    batches: Iterable[Batch],
    *,
    cell_type: str,
    edges: Sequence[int] | None = None,
    bn: str = "batch",
    seed: int | None = 0,
    between: Callable[[], None] | None = None,
) -> RemovalScores:
    """Score the network with each operation of ``edges`` removed in turn (DARTS-PT, Algorithm 1).

    Removing means weight 0 with nothing renormalised. All removals see the same batches.

    Args:
        net: a supernet; decided edges keep their decision while others are scored.
        batches: ``(images, labels)``, gone through once and kept.
        cell_type: where to remove.
        edges: edge indices, default every edge of the cell.
        bn, seed, between: as for :func:`score_tables`.

    Raises:
        ValueError: no such cell type or edge, no batches, or an unknown ``bn``.
    """
    space = net.space
    if cell_type not in space.cell_types:
        known = ", ".join(space.cell_types)
        raise ValueError(f"removal_scores: cell_type must be one of {known}, got {cell_type!r}")
    chosen = tuple(range(space.num_edges)) if edges is None else tuple(edges)
    for edge in chosen:
        if not 0 <= edge < space.num_edges:
            raise ValueError(
                f"removal_scores: edges must be in 0..{space.num_edges - 1}, got {list(chosen)}"
            )
    weights = net.edge_weights()[cell_type].detach()
    places = [
        (row, op)
        for row, edge in enumerate(chosen)
        for op in range(len(space.primitives[cell_type][edge]))
    ]
    tables: list[Table] = [{}]
    for row, op in places:
        removed = weights.clone()
        removed[chosen[row], op] = 0
        tables.append({cell_type: removed})
    scores = score_tables(net, batches, tables, bn=bn, seed=seed, between=between)

    def spread(values: Tensor) -> Tensor:
        grid = torch.full((len(chosen), space.num_ops, *values.shape[1:]), float("nan"))
        grid = grid.to(values.dtype)
        for (row, op), value in zip(places, values[1:], strict=True):
            grid[row, op] = value
        return grid

    return RemovalScores(
        cell_type=cell_type,
        edges=chosen,
        loss=spread(scores.loss),
        accuracy=spread(scores.accuracy),
        loss_stderr=spread(scores.loss_stderr),
        accuracy_stderr=spread(scores.accuracy_stderr),
        base=scores.score(0),
        images=scores.images,
        batch_loss=spread(scores.batch_loss),
        batch_correct=spread(scores.batch_correct),
        batch_images=scores.batch_images,
    )

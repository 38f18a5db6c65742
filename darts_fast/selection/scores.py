# SPDX-License-Identifier: Apache-2.0
"""Scores of removals, the measurements that perturbation-based selection decides by."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from darts_fast.accelerate import as_supernet
from darts_fast.distributed import ALONE, World
from darts_fast.nn import Supernet
from darts_fast.selection import removal_files
from darts_fast.selection.removals import Removal, every_removal, parse_removal
from darts_fast.selection.tables import Batch, Difference, Score, TableScores, score_tables

__all__ = ["RemovalScores", "removal_scores"]

BASE = "base"
_NAMED_IN_A_WARNING = 8


@dataclass(frozen=True)
class RemovalScores:
    """Scores of removals, and of the network with nothing removed, on the same images.

    For the operations of some edges of one cell type the scores have the shape [len(edges), ops]:
    row ``i`` is edge ``edges[i]``. For any other set of R removals they have the shape [R], in the
    order of ``rows``.

    Attributes:
        rows: the removals in order, of edges edge by edge.
        scores: sums per batch; row 0 is the network with nothing removed, row 1 + r removal r.
        cell_type: the cell type the removals were made in; None of a mixed set.
        edges: edge indices, as asked for; () of a mixed set.
    """

    rows: tuple[Removal, ...]
    scores: TableScores
    cell_type: str | None = None
    edges: tuple[int, ...] = ()

    @property
    def loss(self) -> Tensor:
        """float64, mean over images, with the removal made."""
        return self._shaped(self.scores.loss)

    @property
    def accuracy(self) -> Tensor:
        """Percent."""
        return self._shaped(self.scores.accuracy)

    @property
    def loss_stderr(self) -> Tensor:
        """The batch as the unit (see :class:`TableScores`)."""
        return self._shaped(self.scores.loss_stderr)

    @property
    def accuracy_stderr(self) -> Tensor:
        """Percent."""
        return self._shaped(self.scores.accuracy_stderr)

    @property
    def base(self) -> Score:
        """The network with nothing removed."""
        return self.scores.score(0)

    @property
    def images(self) -> int:
        """Images seen by each removal."""
        return self.scores.images

    @property
    def batch_loss(self) -> Tensor:
        """[..., batches], loss summed over the images of each batch."""
        return self._shaped(self.scores.batch_loss)

    @property
    def batch_correct(self) -> Tensor:
        """[..., batches], images classified right."""
        return self._shaped(self.scores.batch_correct)

    @property
    def batch_images(self) -> Tensor:
        """[batches]."""
        return self.scores.batch_images

    @property
    def not_finite(self) -> tuple[Removal, ...]:
        """The removals without a finite loss on some batch."""
        finite = self.scores.batch_loss[1:].isfinite().all(dim=1).tolist()
        return tuple(row for row, good in zip(self.rows, finite, strict=True) if not good)

    def difference(self, one: int | str, other: int | str = BASE) -> Difference:
        """Scores of one removal less those of another, image by image the same ones.

        Args: one, other, the place in ``rows``, a removal's name, or "base".

        Raises:
            ValueError: no such removal.
        """
        return self.scores.difference(self._row(one), self._row(other))

    def to_csv(self, path: str | Path) -> None:
        """One line for the base and for each removal: scores, and differences to the base."""
        removal_files.write_csv(self, Path(path))

    def plot(self, path: str | Path) -> None:
        """A heat map per cell type, edges by operations: by how much each removal raises the loss.

        The file's name gives the format. Raises ValueError if nothing that was removed is a single
        operation or edge.
        """
        removal_files.plot(self, Path(path))

    def to_json(self, path: str | Path) -> None:
        """Everything, exactly: `from_json` gives an equal object."""
        removal_files.write_json(self, Path(path))

    @classmethod
    def from_json(cls, path: str | Path) -> RemovalScores:
        """What `to_json` wrote. Raises ValueError if the file holds something else."""
        return cls(**removal_files.read_json(Path(path)))

    def _shaped(self, values: Tensor) -> Tensor:
        values = values[1:]
        # Every edge of a space has the same number of operations.
        return values.unflatten(0, (len(self.edges), -1)) if self.edges else values

    def _row(self, given: int | str) -> int:
        if given == BASE:
            return 0
        names = [row.name for row in self.rows]
        if isinstance(given, str) and given in names:
            return 1 + names.index(given)
        if isinstance(given, int) and 0 <= given < len(names):
            return 1 + given
        raise ValueError(
            f"difference: a removal must be base, a name or in 0..{len(names) - 1}, got {given!r}"
        )


def removal_scores(
    net: nn.Module,
    batches: Iterable[Batch],
    *,
    cell_type: str | None = None,
    edges: Sequence[int] | None = None,
    removals: Sequence[object] | None = None,
    tables: Sequence[Mapping[str, Tensor]] | None = None,
    bn: str = "batch",
    seed: int | None = 0,
    between: Callable[[], None] | None = None,
    max_memory: int | str | None = None,
    progress: bool = False,
    world: World = ALONE,
) -> RemovalScores:
    """Score the network with each of a set of removals made in turn (DARTS-PT, Algorithm 1).

    Removing means weight 0 with nothing renormalised. All removals see the same batches, in one
    pass (`MaskedEvaluation`). Without `cell_type`, `removals` and `tables` each operation of the
    whole network is removed in turn.

    Args:
        net: a supernet; decided edges keep their decision while others are scored. One of another
            code base, accelerated or not, is scored as the supernet that
            `darts_fast.as_supernet` makes of it.
        batches: ``(images, labels)``, gone through once.
        cell_type: where to remove each operation of ``edges`` in turn.
        edges: edge indices, default every edge of the cell.
        removals: any set: ``(cell type, edge, op)`` with the op's index or name, ``(cell type,
            edge)`` for a whole edge, or a list of those that are removed together.
        tables: edge weights by cell type, as they are, in place of removals.
        bn, seed, between, max_memory, world: as for :func:`score_tables`.
        progress: whether to show a bar on standard error, if that is a terminal.

    Warns:
        RuntimeWarning: some losses are not finite; it names their removals.

    Raises:
        ValueError: no such cell type, edge or op, no batches or removals, more than one kind of
            set, an unknown ``bn``, a ``max_memory`` that does not hold one table, or a model that
            `as_supernet` does not take.
    """
    if not isinstance(net, Supernet):
        net = as_supernet(net)
    if sum(given is not None for given in (cell_type, removals, tables)) > 1:
        raise ValueError("removal_scores: give one of cell_type, removals and tables, got more")
    if edges is not None and cell_type is None:
        raise ValueError(f"removal_scores: edges need a cell_type, got edges {list(edges)}")
    rows, chosen = _rows(net, cell_type, edges, removals, tables)
    if not rows:
        raise ValueError("removal_scores: needs at least one removal, got none")
    weights = net.edge_weights()
    changed = [row.table(weights) for row in rows] if tables is None else list(tables)
    with _advancing(progress, batches, 1 + len(rows), between) as advance:
        scores = score_tables(
            net,
            batches,
            [{}, *changed],
            bn=bn,
            seed=seed,
            between=advance,
            max_memory=max_memory,
            world=world,
        )
    found = RemovalScores(rows, scores, cell_type, chosen)
    _warn(found)
    return found


def _rows(
    net: Supernet,
    cell_type: str | None,
    edges: Sequence[int] | None,
    removals: Sequence[object] | None,
    tables: Sequence[Mapping[str, Tensor]] | None,
) -> tuple[tuple[Removal, ...], tuple[int, ...]]:
    """The removals, and the edges of a set that has rows of edges."""
    space = net.space
    if tables is not None:
        return tuple(Removal((), f"table {index}") for index in range(len(tables))), ()
    if removals is not None:
        return tuple(parse_removal(space, given) for given in removals), ()
    if cell_type is None:
        return tuple(every_removal(space)), ()
    if cell_type not in space.cell_types:
        known = ", ".join(space.cell_types)
        raise ValueError(f"removal_scores: cell_type must be one of {known}, got {cell_type!r}")
    chosen = tuple(range(space.num_edges)) if edges is None else tuple(edges)
    if not all(0 <= edge < space.num_edges for edge in chosen):
        raise ValueError(
            f"removal_scores: edges must be in 0..{space.num_edges - 1}, got {list(chosen)}"
        )
    rows = (
        parse_removal(space, (cell_type, edge, op))
        for edge in chosen
        for op in range(len(space.primitives[cell_type][edge]))
    )
    return tuple(rows), chosen


@contextmanager
def _advancing(
    show: bool, batches: Iterable[Batch], tables: int, between: Callable[[], None] | None
) -> Iterator[Callable[[], None] | None]:
    """What to call after every evaluation, so that a bar moves."""
    console = Console(stderr=True)
    if not show or not console.is_terminal:
        yield between
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as bar:
        total = len(batches) * tables if isinstance(batches, Sequence) else None
        task = bar.add_task("removals", total=total)

        def advance() -> None:
            bar.advance(task)
            if between is not None:
                between()

        yield advance


def _warn(scores: RemovalScores) -> None:
    names = [row.name for row in scores.not_finite]
    if not torch.isfinite(scores.scores.batch_loss[0]).all():
        names.insert(0, BASE)
    if not names:
        return
    listed = ", ".join(names[:_NAMED_IN_A_WARNING])
    if len(names) > _NAMED_IN_A_WARNING:
        listed += f" and {len(names) - _NAMED_IN_A_WARNING} more"
    total = 1 + len(scores.rows)
    warnings.warn(
        f"removal_scores: {len(names)} of {total} losses are not finite: {listed}",
        RuntimeWarning,
        stacklevel=3,
    )

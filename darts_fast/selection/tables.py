# SPDX-License-Identifier: Apache-2.0
"""Loss and accuracy of a supernet under changed edge weights: the measurements that selection
decides by.

A *table* maps cell types to edge weights ``[edges, ops]``; cell types it leaves out keep the
network's own. Scoring reads the network and leaves it as it was: buffers, training flags and the
random state are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from darts_fast.nn import Supernet
from darts_fast.nn.operations import Noise
from darts_fast.seeding import rng_state, set_rng_state

__all__ = ["Batch", "Score", "Table", "TableScores", "score_tables"]

Batch = tuple[Tensor, Tensor]
Table = Mapping[str, Tensor]
BN_MODES = ("batch", "batch_updating", "running")


@dataclass(frozen=True)
class Score:
    """Loss (mean over images) and accuracy (percent), each with its standard error."""

    loss: float
    accuracy: float
    loss_stderr: float
    accuracy_stderr: float


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
) -> TableScores:
    """Evaluate the network under every table on the same batches, one full forward per table and
    batch.

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
        between: called after every forward; what it raises ends the scoring, and the network is
            still put back.

    Raises:
        ValueError: no batches, no tables, or an unknown ``bn``.
    """
    if bn not in BN_MODES:
        raise ValueError(f"score_tables: bn must be one of {', '.join(BN_MODES)}, got {bn!r}")
    if not tables:
        raise ValueError("score_tables: tables must not be empty, got 0 tables")
    first_of: dict[tuple[tuple[str, bytes], ...], int] = {}
    position = [first_of.setdefault(_key(net, table), len(first_of)) for table in tables]
    distinct = [tables[position.index(index)] for index in range(len(first_of))]
    losses: list[list[float]] = []
    correct: list[list[float]] = []
    sizes: list[float] = []
    parameter = next(net.parameters())
    with _untouched(net, bn, keep_rng=seed is not None), torch.no_grad():
        for number, (images, labels) in enumerate(batches):
            images = images.to(parameter.device, parameter.dtype)
            labels = labels.to(parameter.device)
            losses.append([])
            correct.append([])
            sizes.append(float(len(labels)))
            for table in distinct:
                with _keyed_draws(net, seed, number):
                    logits = net(images, weights=table)
                loss = functional.cross_entropy(logits.double(), labels, reduction="sum")
                losses[-1].append(float(loss))
                correct[-1].append(float((logits.argmax(1) == labels).sum()))
                if between is not None:
                    between()
    if not sizes:
        raise ValueError("score_tables: batches must not be empty, got 0 batches")
    return TableScores(
        batch_loss=torch.tensor(losses, dtype=torch.float64).T[position],
        batch_correct=torch.tensor(correct, dtype=torch.float64).T[position],
        batch_images=torch.tensor(sizes, dtype=torch.float64),
    )


def _key(net: Supernet, table: Table) -> tuple[tuple[str, bytes], ...]:
    """Equal for tables that make the network compute the same thing."""
    own = net.edge_weights()
    rows = [(name, table.get(name, own[name]).detach()) for name in net.space.cell_types]
    return tuple((name, row.double().cpu().numpy().tobytes()) for name, row in rows)


@contextmanager
def _untouched(net: nn.Module, bn: str, *, keep_rng: bool) -> Iterator[None]:
    """Put the network in the mode for scoring; afterwards flags, buffers and the random state are
    as before.
    """
    flags = [(module, module.training) for module in net.modules()]
    buffers = [] if bn == "batch_updating" else [(b, b.clone()) for b in net.buffers()]
    random = rng_state() if keep_rng else None
    try:
        net.train(bn != "running")
        yield
    finally:
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        if random is not None:
            set_rng_state(random)


@contextmanager
def _keyed_draws(net: nn.Module, seed: int | None, batch: int) -> Iterator[None]:
    """One forward whose random draws are the same under every table.

    Each noise operation is seeded on its own: a removed one is skipped, and must not shift the
    draws of the others.
    """
    if seed is None:
        yield
        return

    def reseed(operation: int) -> None:
        key = np.random.SeedSequence([seed, batch, operation]).generate_state(2, np.uint32)
        number = (int(key[0]) << 31) ^ int(key[1])
        torch.default_generator.manual_seed(number)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(number)

    def seeded(operation: int) -> Callable[[nn.Module, object], None]:
        return lambda module, arguments: reseed(operation)

    noises = [module for module in net.modules() if isinstance(module, Noise)]
    hooks = [module.register_forward_pre_hook(seeded(i)) for i, module in enumerate(noises, 1)]
    reseed(0)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

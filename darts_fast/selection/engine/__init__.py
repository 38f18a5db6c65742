# SPDX-License-Identifier: Apache-2.0
"""Batched masked evaluation: one batch of images under many tables of edge weights (design 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from darts_fast.nn import Network, Supernet
from darts_fast.nn.operations import Noise
from darts_fast.selection.engine.changes import gather
from darts_fast.selection.engine.memory import parse_memory
from darts_fast.selection.engine.restore import keyed_draws, untouched
from darts_fast.selection.engine.together import Together
from darts_fast.selection.engine.walk import KnownWalk, Walk

__all__ = ["BN_MODES", "BatchScores", "MaskedEvaluation"]

BN_MODES = ("batch", "batch_updating", "running")


@dataclass(frozen=True)
class BatchScores:
    """What R tables did on one batch.

    Attributes:
        loss: [R] float64, summed over the images.
        correct: [R] int64, images classified right.
    """

    loss: Tensor
    correct: Tensor


class MaskedEvaluation:
    """Evaluates a supernet under many tables of edge weights, a batch of images at a time.

    What no table changes is computed once for all of them: the network up to the first cell whose
    weights change, and behind it every edge that still reads such states (design 5). The rest runs
    stacked, as groups of the native ops, in chunks that fit into a budget of memory. The scores of
    a table depend on the network, the batch and the table alone: not on the chunks, nor on the
    other tables.

    Networks of `darts_fast.nn` are evaluated so, without hooks and drop-path and with the fused
    backend, on the CPU, or on a CUDA device where `use_cuda_kernels` asks for its kernels. Any
    other `Supernet`, and bn="batch_updating", take one full forward per table.

    The weights of the network must not change between construction and calls.

    Attributes:
        batches: number of the next batch, for the noise operations; calls count it up.

    Args:
        net: a supernet. Every call leaves its training flags, buffers and the global random states
            as they were, also when it ends with an exception.
        tables: cell type -> edge weights [edges, ops]; cell types that are left out keep the
            network's own. Equal tables are evaluated once.
        bn: "batch" normalises with the statistics of the batch and leaves the running ones alone;
            "batch_updating" lets the running ones move, as full forwards in the order of the tables
            would (the code of DARTS-PT); "running" normalises with the running ones.
        max_memory: bytes, or a text like "2GiB", that a call may need beyond the network and its
            images; default a quarter of what is available, at most 1 GiB, or on a CUDA device half
            of what is free there; never less than what one table needs.
        seed: noise operations draw from a generator keyed by (seed, batch, operation), the same for
            every table; None lets all draws come from the global states as they fall.
        between: called once for every table and batch that was evaluated; it may raise.

    Raises:
        ValueError: no tables, an unknown `bn`, a `max_memory` that is none.
    """

    def __init__(
        self,
        net: Supernet,
        tables: Sequence[Mapping[str, Tensor]],
        *,
        bn: str = "batch",
        max_memory: int | str | None = None,
        seed: int | None = 0,
        between: Callable[[], None] | None = None,
    ) -> None:
        if bn not in BN_MODES:
            raise ValueError(
                f"MaskedEvaluation: bn must be one of {', '.join(BN_MODES)}, got {bn!r}"
            )
        if not tables:
            raise ValueError("MaskedEvaluation: tables must not be empty, got 0 tables")
        self.net = net
        self.bn = bn
        self.seed = seed
        self.between = between
        self.batches = 0
        own = {name: weights.detach() for name, weights in net.edge_weights().items()}
        self._tables = gather(own, tables)
        self._known = KnownWalk.of(net)
        self._modules = self._known.modules()
        self._buffers = sum(
            buffer.nbytes
            for module in self._modules
            for buffer in module._buffers.values()
            if buffer is not None
        )
        self._budget = None
        if max_memory is not None:
            self._budget = parse_memory("MaskedEvaluation", max_memory)

    def __call__(
        self, images: Tensor, labels: Tensor, rows: Sequence[int] | None = None
    ) -> BatchScores:
        """Scores of one batch.

        Args:
            images: [N, 3, H, W], taken to the network's device and dtype.
            labels: [N] class indices.
            rows: which tables are wanted, in this order; default all.

        Raises:
            ValueError: a row that is no table; a budget that does not hold one table.
        """
        position = self._tables.position
        wanted = list(range(len(position))) if rows is None else list(rows)
        if any(not 0 <= row < len(position) for row in wanted):
            raise ValueError(
                f"MaskedEvaluation: rows must be in 0..{len(position) - 1}, got {wanted}"
            )
        parameter = next(self.net.parameters())
        images = images.to(parameter.device, parameter.dtype)
        labels = labels.to(parameter.device)
        distinct = list(dict.fromkeys(position[row] for row in wanted))
        self._modules = self._known.modules()
        walk = self._walk(images)
        with (
            untouched(
                self.net,
                self.bn,
                keep_rng=self.seed is not None,
                modules=self._modules,
                moving=None if walk is None else walk.moving,
            ),
            torch.no_grad(),
        ):
            if walk is None:
                sums = self._one_by_one(images, labels, distinct)
            else:
                sums = self._together(walk, images, labels, distinct)
        self.batches += 1
        found = torch.stack([sums[position[row]] for row in wanted])
        return BatchScores(found[:, 0].clone(), found[:, 1].long())

    def twins(self, rows: Sequence[int]) -> list[int]:
        """For each of the rows the first one of them with an equal table."""
        first: dict[int, int] = {}
        return [first.setdefault(self._tables.position[row], row) for row in rows]

    def _walk(self, images: Tensor) -> Walk | None:
        """The network's stages, or None where only its own forward says what it computes."""
        net = self.net
        if (
            self.bn == "batch_updating"
            or (isinstance(net, Network) and net.drop_path_prob > 0 and self.bn != "running")
            or (self.seed is None and any(isinstance(op, Noise) for op in self._modules))
        ):
            return None
        own = next(iter(self._tables.reference.values()))
        return self._known.now(images, own.to(images.device))

    def _one_by_one(
        self, images: Tensor, labels: Tensor, indices: Sequence[int]
    ) -> dict[int, Tensor]:
        """One full forward per table."""
        sums: dict[int, Tensor] = {}
        for index in indices:
            table = self._tables.table(index)
            with self._draws():
                logits = self.net(
                    images, weights={name: rows.to(images.device) for name, rows in table.items()}
                )
            sums |= _scores([(index, logits)], labels)
            self._evaluated(1)
        return sums

    def _together(
        self, walk: Walk, images: Tensor, labels: Tensor, indices: Sequence[int]
    ) -> dict[int, Tensor]:
        """Stacked as groups, in chunks."""
        self.net.check_image_size(images.shape[2], images.shape[3])
        together = Together(walk, self._tables, images.device, self._budget, self._buffers)
        sums: dict[int, Tensor] = {}
        with self._draws():
            for chunk in together.logits(images, indices):
                sums |= _scores(chunk, labels)
                self._evaluated(len(chunk))
        return sums

    def _draws(self) -> AbstractContextManager[None]:
        return keyed_draws(self.net, self.seed, self.batches, modules=self._modules)

    def _evaluated(self, count: int) -> None:
        for _ in range(count if self.between is not None else 0):
            assert self.between is not None
            self.between()


def _scores(chunk: Sequence[tuple[int, Tensor]], labels: Tensor) -> dict[int, Tensor]:
    """By table [2] float64 on the CPU: the loss summed over the images, and how many are classified
    right. Reduced where the logits are, and taken from there at once."""
    sums = []
    for _, logits in chunk:
        loss = functional.cross_entropy(logits.double(), labels, reduction="sum")
        sums.append(torch.stack([loss, (logits.argmax(1) == labels).sum().double()]))
    return dict(zip((index for index, _ in chunk), torch.stack(sums).cpu(), strict=True))

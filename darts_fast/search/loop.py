# SPDX-License-Identifier: Apache-2.0
"""What a search method sees of the search: where it stands, its batches, losses and gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from darts_fast.data import Batches, fixed_batches
from darts_fast.distributed import World
from darts_fast.nn import Supernet, frozen
from darts_fast.search.joint import share_loss

if TYPE_CHECKING:
    from darts_fast.search.config import SearchConfig
    from darts_fast.search.trainer import Trainer

__all__ = ["Batch", "Loop"]


@dataclass(frozen=True)
class Batch:
    """Images ``[n, 3, H, W]`` of this process's share, and labels ``[N]`` of the whole batch; for a
    process alone ``n == N``.
    """

    images: Tensor
    labels: Tensor


class Loop:
    """The search as its method sees it, the same in one process and in several.

    Attributes:
        train: the batch of the weight step that follows.
    """

    def __init__(self, trainer: Trainer, draws: Mapping[str, Batches]) -> None:
        self._trainer = trainer
        self._draws = draws
        self._valid_batches: Iterator[tuple[Tensor, Tensor]] = iter(())
        self._valid: Batch | None = None
        self.train = Batch(torch.empty(0), torch.empty(0))

    @property
    def net(self) -> Supernet:
        """The supernet."""
        return self._trainer.net

    @property
    def config(self) -> SearchConfig:
        """Settings of the search."""
        return self._trainer.config

    @property
    def alone(self) -> bool:
        """Whether one process does this search."""
        return self._trainer.world.alone

    @property
    def epoch(self) -> int:
        """Of the present phase, from 0."""
        return self._trainer.epoch

    @property
    def index(self) -> int:
        """Of the step in its epoch, from 0; in `end_epoch` the number of steps."""
        return self._trainer.step

    @property
    def tuning(self) -> bool:
        """Whether this is the tuning of a selection, not the search."""
        return self._trainer.tuning

    @property
    def learning_rate(self) -> float:
        """Of the weights, in this epoch."""
        return self._trainer.learning_rate

    @property
    def optimizer(self) -> torch.optim.SGD:
        """Of the weights."""
        return self._trainer.optimizer

    @property
    def arch_optimizer(self) -> torch.optim.Adam:
        """Of the architecture parameters."""
        return self._trainer.arch_optimizer

    @property
    def weights(self) -> list[nn.Parameter]:
        """The weights that the optimizer moves, all but the architecture parameters."""
        return cast(list[nn.Parameter], self.optimizer.param_groups[0]["params"])

    @property
    def valid(self) -> Batch:
        """The validation batch of this step, drawn when it is first asked for."""
        if self._valid is None:
            self._valid = self._trainer.batch(*next(self._valid_batches))
        return self._valid

    @property
    def world(self) -> World:
        """The processes of the search."""
        return self._trainer.world

    def valid_pool(self) -> list[tuple[Tensor, Tensor]]:
        """The whole validation half in fixed batches, not augmented, for the scores of a selection;
        every process has all of it.
        """
        trainer = self._trainer
        size = self.config.batch_size
        pool = fixed_batches(trainer.valid, trainer.augmentation.plain, size)
        return [(images.to(trainer.dtype), labels) for images, labels in pool]

    def draw_train(self) -> Batch:
        """One more random batch of the training half, from a stream of its own."""
        return self._trainer.batch(*self._draws["train"].draw())

    def draw_valid(self) -> Batch:
        """One more random batch of the validation half, from a stream of its own."""
        return self._trainer.batch(*self._draws["valid"].draw())

    def loss(self, batch: Batch, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """This process's part of the mean cross entropy of the batch, with its graph.

        Args:
            weights: edge weights by cell type, default the network's own.
        """
        return share_loss(self.net, batch.images, batch.labels, self._trainer.world, weights)[0]

    def gradients(
        self,
        batch: Batch,
        leaves: Sequence[Tensor],
        weights: Mapping[str, Tensor] | None = None,
    ) -> tuple[float, list[Tensor]]:
        """The mean cross entropy of a batch and its gradient by each leaf, over all processes.

        Only these are computed: everything else is frozen for the call.

        Args:
            leaves: architecture parameters, weights, or tensors that ``weights`` are made of.
            weights: as for :meth:`loss`.

        Returns:
            Gradients in the order of the leaves; zeros for those that do not matter.
        """
        wanted = {id(leaf) for leaf in leaves}
        every = (*self.weights, *self.net.arch_parameters())
        with frozen([parameter for parameter in every if id(parameter) not in wanted]):
            loss = self.loss(batch, weights)
            if loss.requires_grad:
                found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            else:  # every edge is decided, or the share is empty
                found = tuple(torch.zeros_like(leaf) for leaf in leaves)
        loss = loss.detach()
        self._trainer.world.sum([loss, *found])
        return float(loss), list(found)

    def join(self, tensors: list[Tensor]) -> None:
        """Make the tensors their sums over all processes, in place."""
        self._trainer.world.sum(tensors)

    def set_batch_size(self, size: int) -> None:
        """Of training and validation batches of the search, from the next epoch on.

        Raises:
            ValueError: below 2.
        """
        if size < 2:
            raise ValueError(f"search: the batch size must be at least 2, got {size}")
        self._trainer.set_batch_size(size)

    def stop(self) -> None:
        """The search ends with this epoch."""
        self._trainer.stopped = True

    def snapshot(self) -> dict[str, Any]:
        """Network, optimizers and epoch as they are at the end of this epoch, copied; the method's
        own state is not in it.
        """
        return deepcopy(
            {
                "net": self.net.full_state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "arch_optimizer": self.arch_optimizer.state_dict(),
                "epoch": self.epoch,
            }
        )

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go back to the end of the epoch of a :meth:`snapshot`; the next epoch is the one after
        it. Data order and random draws go on.
        """
        self.net.load_full_state_dict(snapshot["net"])
        self.optimizer.load_state_dict(deepcopy(snapshot["optimizer"]))
        self.arch_optimizer.load_state_dict(deepcopy(snapshot["arch_optimizer"]))
        self._trainer.epoch = snapshot["epoch"]

    def log(self, line: str) -> None:
        """One line for the log."""
        self._trainer.reporter.log(line)

    def record(self, event: Mapping[str, Any]) -> None:
        """One event for the run's history."""
        self._trainer.reporter.record(event)

    def begin_step(self, train: Batch, valid: Iterator[tuple[Tensor, Tensor]]) -> None:
        """The search is at its next step (called by the trainer); validation batches come from
        ``valid``.
        """
        self.train = train
        self._valid = None
        self._valid_batches = valid

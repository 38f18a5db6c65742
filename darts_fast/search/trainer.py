# SPDX-License-Identifier: Apache-2.0
"""One supernet in training: data order, optimizers, and the steps of one epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from darts_fast.data import Augmentation, Batches, Dataset, Images, split
from darts_fast.distributed import ALONE, World
from darts_fast.finite import UNSEEN, clip_gradients, first_non_finite, non_finite_weights
from darts_fast.nn import Supernet
from darts_fast.reporter import Asked, Asks, NonFiniteLossError, Reporter
from darts_fast.search.config import SearchConfig
from darts_fast.search.joint import check_same, join_gradients, share_loss
from darts_fast.search.methods import ARCHITECTURE_STEPS
from darts_fast.seeding import generator

__all__ = ["ARCH_BETAS", "TUNING_LR_FACTOR", "Perturb", "Trainer"]

Perturb = Callable[[Supernet, torch.Tensor, torch.Tensor], Mapping[str, torch.Tensor]]

ARCH_BETAS = (0.5, 0.999)
TUNING_LR_FACTOR = 0.1


class Trainer:
    """Alternates architecture steps on the validation half with weight steps on the training half.

    Args:
        net: trained in place; its device and dtype are used.
        data: ``data.train`` is cut, the first ``train_portion`` for the weights: in index order, or
            with ``config.stratified`` class by class.
        config: see :class:`SearchConfig`.
        augmentation: of both halves, default ``data.augmentation``.
        perturb: gives edge weights for each weight step of the tuning, see `Search`.
        world: processes that train together, each with the same network, data, settings and global
            random state: they share every batch (`darts_fast.search.joint`).

    Attributes:
        train, valid: the two halves.
        epoch_steps: steps of one epoch.
        asked: whether to save or to stop after the present step, the same in all processes.
    """

    def __init__(
        self,
        net: Supernet,
        data: Dataset,
        config: SearchConfig,
        augmentation: Augmentation | None = None,
        perturb: Perturb | None = None,
        world: World = ALONE,
    ) -> None:
        self.net = net
        self.perturb = perturb
        self.world = world
        self.asked: Asks = Reporter()
        self._reporter = Reporter()
        self.config = config
        self.augmentation = augmentation or data.augmentation
        parameter = next(net.parameters())
        self.dtype = parameter.dtype
        halves = split(data.train, config.train_portion, stratified=config.stratified)
        self.train, self.valid = (half.to(parameter.device) for half in halves)
        redraw = config.sampling == "replacement"
        self._search_batches = self._batches(self.train, stream="search", replacement=redraw)
        self._valid_batches = self._batches(self.valid, stream="valid", replacement=redraw)
        self._tuning_batches = self._batches(self.train, stream="tuning", replacement=False)
        self._valid_epoch: Iterator[tuple[torch.Tensor, torch.Tensor]] | None = None
        self.arch_optimizer = torch.optim.Adam(
            net.arch_parameters(),
            lr=config.arch_learning_rate,
            betas=ARCH_BETAS,
            weight_decay=config.arch_weight_decay,
        )
        self._architecture_step = ARCHITECTURE_STEPS[config.method]
        self.tuning = False
        self.optimizer = self._sgd(config.learning_rate)
        self.epoch = 0  # whole epochs of the present phase
        self.step = 0  # steps of the present epoch
        self._loss = self._correct = self._correct5 = self._images = 0.0

    @property
    def epoch_steps(self) -> int:
        """Steps of one epoch: ``ceil(training images / batch_size)``."""
        return len(self._search_batches)

    @property
    def learning_rate(self) -> float:
        """Of the weights in the present epoch: cosine in the search, constant in tuning."""
        config = self.config
        if self.tuning:
            return config.learning_rate * TUNING_LR_FACTOR
        share = self.epoch / max(config.epochs, 1)
        swing = (config.learning_rate - config.learning_rate_min) / 2
        return config.learning_rate_min + swing * (1 + math.cos(math.pi * share))

    def start_tuning(self) -> None:
        """From now on tune: fresh SGD state, constant tenth of the rate, every training image once
        an epoch.
        """
        self.tuning = True
        self.epoch = self.step = 0
        self.optimizer = self._sgd(self.learning_rate)

    def run_epoch(self, reporter: Reporter, between: Callable[[], None]) -> float:
        """The rest of the present epoch; returns its training accuracy in percent.

        ``between`` is called after every step; the state is whole then, and it may raise.

        Raises:
            NonFiniteLossError: a loss or the weights' gradient is NaN or infinite; the message says
            epoch, step, and cell, edge and operation of the first such value. The step moves no
            weight.
            ValueError: the processes of the world do not hold the same weights.
            RankLostError: a process of the world is gone.
        """
        if self.step == 0:
            self._loss = self._correct = self._correct5 = self._images = 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self._reporter = self.asked = reporter
        self.net.train()
        for images, labels in self._tuning_batches if self.tuning else self._search_batches:
            if self._architecture_step is not None:
                valid_images, valid_labels = self._valid_batch()
                valid_images = self._own(valid_images, valid_labels).to(self.dtype)
                loss = self._architecture_step(
                    self.net, self.arch_optimizer, valid_images, valid_labels, self.world
                )
                self._check_finite(loss, "architecture", valid_images)
            self._weight_step(images.to(self.dtype), labels)
            self.step += 1
            if (self.step - 1) % self.config.report_freq == 0:
                reporter.log(self._progress_line())
            reporter.advance(self.accuracy)
            between()
        check_same(self.net, self.world, f"after epoch {self.epoch}")
        accuracy = self.accuracy
        self.epoch += 1
        self.step = 0
        return accuracy

    def check_weights(self) -> None:
        """Raise NonFiniteLossError if a weight is NaN or infinite: such a state is not worth saving
        over one that is not.
        """
        where = non_finite_weights(self.net)
        if where is not None:
            raise self._non_finite("weights must be finite to be saved,", where)

    @property
    def accuracy(self) -> float:
        """Of the training batches of this epoch so far, percent."""
        return 100 * self._correct / max(self._images, 1)

    @property
    def loss(self) -> float:
        """Mean cross entropy of the training batches of this epoch so far."""
        return self._loss / max(self._images, 1)

    def _progress_line(self) -> str:
        """``train step loss top1 top5`` over the epoch so far, as the originals print it."""
        top5 = 100 * self._correct5 / self._images
        return f"train {self.step - 1:03d} {self.loss:e} {self.accuracy:f} {top5:f}"

    def state_dict(self) -> dict[str, Any]:
        """Optimizers, data order and position; the network is not in it."""
        return {
            "tuning": self.tuning,
            "epoch": self.epoch,
            "step": self.step,
            "sums": [self._loss, self._correct, self._correct5, self._images],
            "optimizer": self.optimizer.state_dict(),
            "arch_optimizer": self.arch_optimizer.state_dict(),
            "search_batches": self._search_batches.state_dict(),
            "valid_batches": self._valid_batches.state_dict(),
            "tuning_batches": self._tuning_batches.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, bit for bit."""
        self.tuning = state["tuning"]
        self.epoch, self.step = state["epoch"], state["step"]
        self._loss, self._correct, self._correct5, self._images = state["sums"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.arch_optimizer.load_state_dict(state["arch_optimizer"])
        self._search_batches.load_state_dict(state["search_batches"])
        self._valid_batches.load_state_dict(state["valid_batches"])
        self._tuning_batches.load_state_dict(state["tuning_batches"])
        self._valid_epoch = None

    def _weight_step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        alphas = self.net.arch_parameters()
        for alpha in alphas:
            alpha.requires_grad_(False)
        try:
            self.optimizer.zero_grad()
            given = None
            if self.tuning and self.perturb is not None:
                given = self.perturb(self.net, images, labels)
            images = self._own(images, labels)
            loss, logits = share_loss(self.net, images, labels, self.world, given)
            if len(images) > 0:
                loss.backward()
        finally:
            for alpha in alphas:
                alpha.requires_grad_(True)
        own = labels[self.world.share(len(labels))]
        best = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices == own[:, None]
        sums = [float(loss.detach()), float(best[:, 0].sum()), float(best.sum())]
        value, correct, correct5 = self._joined(sums, len(labels))
        self._check_finite(value, "training", images, given)
        norm, where = clip_gradients(self.net, self.config.grad_clip)
        if where is not None:
            raise self._non_finite(
                f"gradient of the training loss must be finite, got {norm}", where
            )
        self.optimizer.step()
        self._loss += value * len(labels)
        self._correct += correct
        self._correct5 += correct5
        self._images += len(labels)

    def _own(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """This process's share of a batch with those labels, whose other images may not be made."""
        whole = len(images) == len(labels)
        return images[self.world.share(len(labels))] if whole else images

    def _joined(self, sums: list[float], images: int) -> list[float]:
        """The sums over all processes; gradients are joined and `asked` is agreed on the way."""
        if self.world.alone:
            return sums
        asked = [float(self._reporter.saving), float(self._reporter.stopping)]
        both = next(self.net.parameters()).new_tensor(
            [*sums, *asked], dtype=torch.promote_types(self.dtype, torch.float32)
        )
        join_gradients(self.net, images, self.world, both)
        *sums, saving, stopping = both.tolist()
        self.asked = Asked(saving=saving > 0, stopping=stopping > 0)
        return sums

    def _check_finite(
        self,
        loss: float,
        kind: str,
        images: torch.Tensor,
        given: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        if not math.isfinite(loss):
            where = UNSEEN
            if len(images) > 0:
                where = first_non_finite(self.net, lambda: self.net(images, weights=given))
            places = self.world.gather(where)
            where = next((place for place in places if place != UNSEEN), UNSEEN)
            raise self._non_finite(f"{kind} loss must be finite, got {loss}", where)

    def _non_finite(self, rule: str, where: str) -> NonFiniteLossError:
        phase = "tuning epoch" if self.tuning else "epoch"
        return NonFiniteLossError(
            f"search: the {rule} in {phase} {self.epoch}, step {self.step}; first in {where}; "
            "a smaller learning rate may help"
        )

    def _valid_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._valid_batches.replacement:
            return self._valid_batches.draw()
        while True:
            if self._valid_epoch is None:
                self._valid_epoch = iter(self._valid_batches)
            batch = next(self._valid_epoch, None)
            if batch is not None:
                return batch
            self._valid_epoch = None

    def _batches(self, images: Images, *, stream: str, replacement: bool) -> Batches:
        return Batches(
            images,
            self.augmentation,
            self.config.batch_size,
            generator(self.config.seed, stream),
            replacement=replacement,
            # A perturbation of the weights may depend on all images of a batch.
            share=None if self.world.alone or self.perturb is not None else self.world.share,
        )

    def _sgd(self, learning_rate: float) -> torch.optim.SGD:
        config = self.config
        return torch.optim.SGD(
            self.net.parameters(),
            lr=learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )

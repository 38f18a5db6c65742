# SPDX-License-Identifier: Apache-2.0
"""One supernet in training: data order, optimizers, and the steps of one epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from darts_fast.data import Augmentation, Batches, Dataset, Images, split
from darts_fast.distributed import ALONE, World
from darts_fast.finite import clip_gradients, non_finite_weights
from darts_fast.nn import Statistics, Supernet
from darts_fast.reporter import Asked, Asks, NonFiniteLossError, Reporter
from darts_fast.search.config import SearchConfig
from darts_fast.search.joint import check_same, first_place, join_gradients, share_loss
from darts_fast.search.loop import Batch, Loop
from darts_fast.search.meter import Meter
from darts_fast.search.methods import METHODS, method_options
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
        method: what the search does to the architecture, see `darts_fast.search.methods`.
        steps_done: of the search, over all its epochs.
        stopped: whether the method has ended the search before its last epoch.
        reporter: of the phase under way.
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
        self.reporter = Reporter()
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
        self._valid_stream = self._valid_batches.forever()
        self.arch_optimizer = torch.optim.Adam(
            net.arch_parameters(),
            lr=config.arch_learning_rate,
            betas=ARCH_BETAS,
            weight_decay=config.arch_weight_decay,
        )
        options = method_options(config.method, config.method_options)
        self.method = METHODS[config.method](net, config, options)
        self._draws = {
            name: self._batches(half, stream=f"method {name}", replacement=True)
            for name, half in (("train", self.train), ("valid", self.valid))
        }
        self._loop = Loop(self, self._draws)
        self._statistics = Statistics(net)
        self.tuning = False
        self.stopped = False
        self.steps_done = 0
        self.optimizer = self._sgd(config.learning_rate)
        self.epoch = 0  # whole epochs of the present phase
        self.step = 0  # steps of the present epoch
        self._meter = Meter()

    @property
    def epoch_steps(self) -> int:
        """Steps of one epoch: ``ceil(training images / batch_size)``."""
        return len(self._search_batches)

    @property
    def total_steps(self) -> int:
        """Of the search, done and to come, as far as it is known."""
        epochs = 0 if self.stopped else self.config.epochs - self.epoch
        return self.steps_done + epochs * self.epoch_steps - self.step

    @property
    def learning_rate(self) -> float:
        """Of the weights in the present epoch: cosine in the search, constant in tuning."""
        if self.tuning:
            return self.config.learning_rate * TUNING_LR_FACTOR
        return self.config.learning_rate_at(self.epoch)

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
        self.reporter = self.asked = reporter
        if self.step == 0:
            self._meter = Meter()
            if not self.tuning:
                self.method.begin_epoch(self._loop)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.net.train()
        self._statistics = Statistics(self.net)
        for images, labels in self._tuning_batches if self.tuning else self._search_batches:
            self._loop.begin_step(self.batch(images, labels), self._valid_stream)
            self._architecture_step()
            self._weight_step(images.to(self.dtype), labels)
            self.step += 1
            self.steps_done += not self.tuning
            if (self.step - 1) % self.config.report_freq == 0:
                reporter.log(self._meter.line(self.step - 1))
            reporter.advance(self.accuracy)
            between()
        check_same(self.net, self.world, f"after epoch {self.epoch}")
        accuracy = self.accuracy
        if not self.tuning:
            self.method.end_epoch(self._loop)
        self.epoch += 1
        self.step = 0
        return accuracy

    def batch(self, images: torch.Tensor, labels: torch.Tensor) -> Batch:
        """This process's share of a batch, in the network's dtype."""
        return Batch(self._own(images, labels).to(self.dtype), labels)

    def set_batch_size(self, size: int) -> None:
        """Of the batches of the search, from the next epoch on."""
        for batches in (self._search_batches, self._valid_batches, *self._draws.values()):
            batches.resize(size)
        self._valid_stream = self._valid_batches.forever()

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
        return self._meter.accuracy

    @property
    def loss(self) -> float:
        """Mean cross entropy of the training batches of this epoch so far."""
        return self._meter.loss

    def state_dict(self) -> dict[str, Any]:
        """Optimizers, data order and position; the network is not in it."""
        return {
            "tuning": self.tuning,
            "epoch": self.epoch,
            "step": self.step,
            "steps_done": self.steps_done,
            "stopped": self.stopped,
            "grown": self._search_batches.batch_size - self.config.batch_size,
            "method": self.method.state_dict(),
            "draws": {name: batches.state_dict() for name, batches in self._draws.items()},
            "sums": self._meter.state(),
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
        self.steps_done, self.stopped = state["steps_done"], state["stopped"]
        self.set_batch_size(self.config.batch_size + state["grown"])
        self.method.load_state_dict(state["method"])
        for name, batches in self._draws.items():
            batches.load_state_dict(state["draws"][name])
        self._meter.load(state["sums"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.arch_optimizer.load_state_dict(state["arch_optimizer"])
        self._search_batches.load_state_dict(state["search_batches"])
        self._valid_batches.load_state_dict(state["valid_batches"])
        self._tuning_batches.load_state_dict(state["tuning_batches"])
        self._valid_stream = self._valid_batches.forever()

    def _architecture_step(self) -> None:
        with self._statistics.frozen():
            found = self.method.gradient(self._loop)
        if found is None:
            return
        loss, gradients = found
        if math.isfinite(loss):
            self.method.update(self._loop, gradients)
        else:
            self._check_finite(loss, "architecture", self._loop.valid.images)

    def _weight_step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        alphas = self.net.arch_parameters()
        for alpha in alphas:
            alpha.requires_grad_(False)
        try:
            self.optimizer.zero_grad()
            if self.tuning and self.perturb is not None:
                given: Mapping[str, torch.Tensor] | None = self.perturb(self.net, images, labels)
            else:
                given = self.method.edge_weights(self._loop)
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
            rule = f"gradient of the training loss must be finite, got {norm}"
            raise self._non_finite(rule, where)
        self.optimizer.step()
        self._meter.add(value, correct, correct5, len(labels))

    def _own(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """This process's share of a batch with those labels, whose other images may not be made."""
        whole = len(images) == len(labels)
        return images[self.world.share(len(labels))] if whole else images

    def _joined(self, sums: list[float], images: int) -> list[float]:
        """The sums over all processes; gradients are joined and `asked` is agreed on the way."""
        if self.world.alone:
            return sums
        asked = [float(self.reporter.saving), float(self.reporter.stopping)]
        wide = torch.promote_types(self.dtype, torch.float32)
        both = torch.tensor([*sums, *asked], dtype=wide, device=self.train.images.device)
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
            where = first_place(self.net, images, self.world, given)
            raise self._non_finite(f"{kind} loss must be finite, got {loss}", where)

    def _non_finite(self, rule: str, where: str) -> NonFiniteLossError:
        phase = "tuning epoch" if self.tuning else "epoch"
        return NonFiniteLossError(
            f"search: the {rule} in {phase} {self.epoch}, step {self.step}; first in {where}; "
            "a smaller learning rate may help"
        )

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
        momentum, decay = self.config.momentum, self.config.weight_decay
        weights = self.net.parameters()
        return torch.optim.SGD(weights, learning_rate, momentum, weight_decay=decay)

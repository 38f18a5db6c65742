# SPDX-License-Identifier: Apache-2.0
"""Training of a derived network with the recipe of DARTS.

Liu, Simonyan, Yang: DARTS (ICLR 2019, arXiv 1806.09055), section 3.2 and appendix A.2 (CIFAR-10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from darts_fast.data import Batches, Dataset
from darts_fast.derive.config import EpochResult, TrainConfig, TrainProgress, TrainResult
from darts_fast.evaluation import evaluate
from darts_fast.finite import clip_gradients, first_non_finite, non_finite_weights
from darts_fast.reporter import NonFiniteLossError
from darts_fast.seeding import generator, rng_state, set_rng_state

__all__ = [
    "EpochResult",
    "NetworkTraining",
    "TrainConfig",
    "TrainProgress",
    "TrainResult",
    "train_network",
]


def train_network(
    net: nn.Module,
    data: Dataset,
    config: TrainConfig,
    *,
    progress: Callable[[TrainProgress], None] | None = None,
    log: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train `net` in place: `NetworkTraining(...).run()` for a training that is not stopped."""
    return NetworkTraining(net, data, config, progress=progress, log=log).run()


class NetworkTraining:
    """The training of `net` on data.train with data.augmentation, evaluated on data.test, as an
    object that can stop after any step and go on.

    SGD with momentum and weight decay; the learning rate follows a cosine from learning_rate to 0
    over the epochs, set once per epoch; gradients are clipped to a global L2 norm of grad_clip; the
    cross entropy of an auxiliary head is added with auxiliary_weight; net.drop_path_prob, where net
    has it, is drop_path_prob * epoch / epochs. Cutout is part of data.augmentation. A last batch of
    a single image is left out: it has no batch statistics.

    net: maps float32 [b, 3, H, W] to logits or (logits, auxiliary logits or None); it is trained on
    the device it is on.
    progress: called after each step. log: called with the lines that the DARTS code logs.
    checkpoint: called after each epoch. When progress or checkpoint is called the state is whole;
    either may take it with `state_dict`, and raise.
    All draws come from config.seed; the global random state of torch is left as it was.
    Raises ValueError for fewer than two images.
    """

    def __init__(
        self,
        net: nn.Module,
        data: Dataset,
        config: TrainConfig,
        *,
        progress: Callable[[TrainProgress], None] | None = None,
        log: Callable[[str], None] | None = None,
        checkpoint: Callable[[], None] | None = None,
    ) -> None:
        if len(data.train) < 2:
            raise ValueError(
                f"train_network: there must be 2 training images, got {len(data.train)}"
            )
        self.net = net
        self.config = config
        self.history: list[EpochResult] = []
        self.step = 0  # steps of the present epoch
        self._progress = progress or (lambda step: None)
        self._log = log or (lambda line: None)
        self._checkpoint = checkpoint or (lambda: None)
        self._device = next(net.parameters()).device
        self._data = data.to(self._device)
        self._batches = Batches(
            self._data.train,
            data.augmentation,
            min(config.batch_size, len(data.train)),
            generator(config.seed, "train_network: batches"),
            drop_last=len(data.train) % config.batch_size == 1,
        )
        self._optimizer = torch.optim.SGD(
            net.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self._images = 0  # of the present epoch, as the sums
        self._loss = self._correct = 0.0
        self._rng: dict[str, Any] | None = None  # of the state loaded

    @property
    def epoch(self) -> int:
        """Whole epochs."""
        return len(self.history)

    @property
    def epoch_steps(self) -> int:
        """Steps of one epoch."""
        return len(self._batches)

    def run(self) -> TrainResult:
        """Train; after `load_state_dict` the rest of it.

        Raises NonFiniteLossError when the loss or its gradient is not finite; the message says
        epoch, step, and cell, edge and operation of the first such value.
        """
        # Drop-path draws from the global generator of the network's device.
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            if self._rng is None:
                _seed_global(self._device, self.config.seed)
            else:
                set_rng_state(self._rng)
            while self.epoch < self.config.epochs:
                self._run_epoch()
                self._checkpoint()
        tested = [r.test_accuracy for r in self.history if r.test_accuracy is not None]
        return TrainResult(tested[-1], max(tested), self.history)

    def state_dict(self) -> dict[str, Any]:
        """Everything a later process needs to go on bit for bit; loads with `weights_only=True`.

        To be taken in `progress` or `checkpoint`: the random state of the training is theirs.
        Raises NonFiniteLossError if a weight is NaN or infinite: such a state is not worth saving
        over one that is not.
        """
        where = non_finite_weights(self.net)
        if where is not None:
            raise self._non_finite("weights must be finite to be saved,", where)
        return {
            "net": self.net.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "batches": self._batches.state_dict(),
            "step": self.step,
            "sums": [self._images, self._loss, self._correct],
            "history": [asdict(epoch) for epoch in self.history],
            "rng": rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of a training with the same network, data and config."""
        self.net.load_state_dict(state["net"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._batches.load_state_dict(state["batches"])
        self.step = state["step"]
        self._images, self._loss, self._correct = state["sums"]
        self.history = [EpochResult(**epoch) for epoch in state["history"]]
        self._rng = dict(state["rng"])

    def _run_epoch(self) -> None:
        """The rest of the present epoch, and its evaluation."""
        config, epoch = self.config, self.epoch
        share = epoch / config.epochs
        rate = config.learning_rate * (1 + math.cos(math.pi * share)) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        drop_path = config.drop_path_prob * share
        if hasattr(self.net, "drop_path_prob"):
            self.net.drop_path_prob = drop_path  # type: ignore[assignment]
        self._log(f"epoch {epoch} lr {rate:e}")
        if self.step == 0:
            self._images, self._loss, self._correct = 0, 0.0, 0.0
        self.net.train()
        for x, y in self._batches:
            self._step(x, y)
            self._progress(
                TrainProgress(
                    epoch,
                    config.epochs,
                    self.step,
                    self.epoch_steps,
                    len(y),
                    self._loss / self._images,
                    100 * self._correct / self._images,
                )
            )
        loss, accuracy = self._loss / self._images, 100 * self._correct / self._images
        self._log(f"train_acc {accuracy:f}")
        test_loss = test_accuracy = None
        if (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == config.epochs:
            test_accuracy, test_loss = evaluate(
                self.net, self._data.test, self._data.plain, config.batch_size
            )
            self._log(f"valid_acc {test_accuracy:f}")
        self.history.append(
            EpochResult(epoch, rate, drop_path, loss, accuracy, test_loss, test_accuracy)
        )
        self.step = 0

    def _step(self, x: Tensor, y: Tensor) -> None:
        config = self.config
        self._optimizer.zero_grad()
        logits, main, loss = _loss(self.net, x, y, config.auxiliary_weight)
        right = (logits.argmax(1) == y).sum()
        # One transfer a step, as each one waits for the device.
        all_heads, main_head, hits = torch.stack([loss, main, right]).detach().tolist()
        if not math.isfinite(all_heads):
            where = first_non_finite(self.net, lambda: self.net(x))
            raise self._non_finite(f"loss must be finite, got {all_heads}", where)
        loss.backward()
        norm, bad = clip_gradients(self.net, config.grad_clip)
        if bad is not None:
            raise self._non_finite(f"gradient of the loss must be finite, got {norm}", bad)
        self._optimizer.step()
        self.step += 1
        self._images += len(y)
        self._correct += hits
        self._loss += main_head * len(y)

    def _non_finite(self, rule: str, where: str) -> NonFiniteLossError:
        return NonFiniteLossError(
            f"train_network: the {rule} at epoch {self.epoch}, step {self.step + 1} of "
            f"{self.epoch_steps}; first in {where}; a smaller learning rate than "
            f"{self.config.learning_rate} may help"
        )


def _seed_global(device: torch.device, seed: int) -> None:
    """Seed the global generators of the CPU and of `device`, and of no other device."""
    number = generator(seed, "train_network: network").initial_seed()
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(number)


def _loss(net: nn.Module, x: Tensor, y: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, cross entropy of the main head, and the loss to minimise."""
    output = net(x)
    logits, auxiliary = output if isinstance(output, tuple) else (output, None)
    main = functional.cross_entropy(logits, y)
    if auxiliary is None:
        return logits, main, main
    return logits, main, main + weight * functional.cross_entropy(auxiliary, y)

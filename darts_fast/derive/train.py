# SPDX-License-Identifier: Apache-2.0
"""Training of a derived network with the recipe of DARTS.

Liu, Simonyan, Yang: DARTS (ICLR 2019, arXiv 1806.09055), section 3.2 and appendix A.2 (CIFAR-10).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from darts_fast.data import Batches, Dataset
from darts_fast.evaluation import evaluate
from darts_fast.seeding import generator

__all__ = [
    "DivergenceError",
    "EpochResult",
    "TrainConfig",
    "TrainProgress",
    "TrainResult",
    "train_network",
]


class DivergenceError(RuntimeError):
    """The training loss is no longer a finite number."""


@dataclass(frozen=True)
class TrainConfig:
    """Parameters of the recipe; the defaults are those of DARTS for CIFAR-10.

    evaluate_every: epochs between evaluations on the test images; the last one is always evaluated.
    Raises ValueError for a value out of range.
    """

    epochs: int = 600
    batch_size: int = 96
    learning_rate: float = 0.025
    momentum: float = 0.9
    weight_decay: float = 3e-4
    grad_clip: float = 5.0
    auxiliary_weight: float = 0.4
    drop_path_prob: float = 0.2
    seed: int = 0
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"TrainConfig: {name} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("learning_rate", "grad_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"TrainConfig: {name} must be positive, got {getattr(self, name)}")
        for name in ("weight_decay", "auxiliary_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"TrainConfig: {name} must be at least 0, got {getattr(self, name)}"
                )
        for name in ("momentum", "drop_path_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"TrainConfig: {name} must be at least 0 and below 1, got {getattr(self, name)}"
                )


@dataclass(frozen=True)
class TrainProgress:
    """State after a step. loss and accuracy (percent) are means over the epoch's images so far."""

    epoch: int  # from 0
    epochs: int
    step: int  # from 1, within the epoch
    steps: int
    images: int  # of this step
    loss: float
    accuracy: float


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave; the test values are None where the epoch was not evaluated."""

    epoch: int
    learning_rate: float
    drop_path_prob: float
    train_loss: float
    train_accuracy: float
    test_loss: float | None
    test_accuracy: float | None


@dataclass(frozen=True)
class TrainResult:
    """Accuracies in percent on the test images: of the last epoch, and the best."""

    test_accuracy: float
    best_test_accuracy: float
    history: list[EpochResult] = field(default_factory=list)


def train_network(
    net: nn.Module,
    data: Dataset,
    config: TrainConfig,
    *,
    progress: Callable[[TrainProgress], None] | None = None,
    log: Callable[[str], None] | None = None,
    epoch_done: Callable[[EpochResult], None] | None = None,
) -> TrainResult:
    """Train `net` in place on data.train with data.augmentation, evaluate it on data.test.

    SGD with momentum and weight decay; the learning rate follows a cosine from learning_rate to 0
    over the epochs, set once per epoch; gradients are clipped to a global L2 norm of grad_clip; the
    cross entropy of an auxiliary head is added with auxiliary_weight; net.drop_path_prob, where net
    has it, is drop_path_prob * epoch / epochs. Cutout is part of data.augmentation. A last batch of
    a single image is left out: it has no batch statistics.

    net: maps float32 [b, 3, H, W] to logits or (logits, auxiliary logits or None); it is trained on
    the device it is on.
    progress: called after each step. log: called with the lines that the DARTS code logs.
    epoch_done: called after each epoch.
    All draws come from config.seed; the global random state of torch is left as it was.
    Raises DivergenceError when the loss is not finite, ValueError for fewer than two images.
    """
    if len(data.train) < 2:
        raise ValueError(f"train_network: there must be 2 training images, got {len(data.train)}")
    log = log or (lambda line: None)
    device = next(net.parameters()).device
    data = data.to(device)
    batches = Batches(
        data.train,
        data.augmentation,
        min(config.batch_size, len(data.train)),
        generator(config.seed, "train_network: batches"),
        drop_last=len(data.train) % config.batch_size == 1,
    )
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    history: list[EpochResult] = []
    # Drop-path draws from the global generator of the network's device.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _seed_global(device, config.seed)
        for epoch in range(config.epochs):
            share = epoch / config.epochs
            rate = config.learning_rate * (1 + math.cos(math.pi * share)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            drop_path = config.drop_path_prob * share
            if hasattr(net, "drop_path_prob"):
                net.drop_path_prob = drop_path  # type: ignore[assignment]
            log(f"epoch {epoch} lr {rate:e}")
            loss, accuracy = _epoch(net, batches, optimizer, config, epoch, progress)
            log(f"train_acc {accuracy:f}")
            test_loss = test_accuracy = None
            if (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == config.epochs:
                test_accuracy, test_loss = evaluate(net, data.test, data.plain, config.batch_size)
                log(f"valid_acc {test_accuracy:f}")
            history.append(
                EpochResult(epoch, rate, drop_path, loss, accuracy, test_loss, test_accuracy)
            )
            if epoch_done is not None:
                epoch_done(history[-1])
    tested = [result.test_accuracy for result in history if result.test_accuracy is not None]
    return TrainResult(tested[-1], max(tested), history)


def _seed_global(device: torch.device, seed: int) -> None:
    """Seed the global generators of the CPU and of `device`, and of no other device."""
    number = generator(seed, "train_network: network").initial_seed()
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(number)


def _epoch(
    net: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    epoch: int,
    progress: Callable[[TrainProgress], None] | None,
) -> tuple[float, float]:
    """One pass; returns the mean loss (of the main head) and the accuracy in percent."""
    net.train()
    seen = 0
    total = correct = 0.0
    for step, (x, y) in enumerate(batches, start=1):
        optimizer.zero_grad()
        logits, main, loss = _loss(net, x, y, config.auxiliary_weight)
        right = (logits.argmax(1) == y).sum()
        # One transfer a step, as each one waits for the device.
        all_heads, main_head, hits = torch.stack([loss, main, right]).detach().tolist()
        if not math.isfinite(all_heads):
            raise DivergenceError(
                f"train_network: the loss must be finite, got {all_heads} at epoch {epoch}, "
                f"step {step} of {len(batches)}; a smaller learning rate than "
                f"{config.learning_rate} may help"
            )
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), config.grad_clip)
        optimizer.step()
        seen += len(y)
        correct += hits
        total += main_head * len(y)
        if progress is not None:
            mean, accuracy = total / seen, 100 * correct / seen
            progress(
                TrainProgress(epoch, config.epochs, step, len(batches), len(y), mean, accuracy)
            )
    return total / seen, 100 * correct / seen


def _loss(net: nn.Module, x: Tensor, y: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, cross entropy of the main head, and the loss to minimise."""
    output = net(x)
    logits, auxiliary = output if isinstance(output, tuple) else (output, None)
    main = functional.cross_entropy(logits, y)
    if auxiliary is None:
        return logits, main, main
    return logits, main, main + weight * functional.cross_entropy(auxiliary, y)

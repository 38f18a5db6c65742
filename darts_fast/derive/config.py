# SPDX-License-Identifier: Apache-2.0
"""Parameters of the training of a derived network, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["EpochResult", "TrainConfig", "TrainProgress", "TrainResult"]


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

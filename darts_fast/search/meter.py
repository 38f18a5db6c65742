# SPDX-License-Identifier: Apache-2.0
"""Loss and accuracy of the training batches of one epoch."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Meter"]


class Meter:
    """Sums over the images of an epoch so far."""

    def __init__(self) -> None:
        self._loss = self._correct = self._correct5 = self._images = 0.0

    def add(self, loss: float, correct: float, correct5: float, images: int) -> None:
        """One batch: its mean cross entropy, and how many labels were first and among five."""
        self._loss += loss * images
        self._correct += correct
        self._correct5 += correct5
        self._images += images

    @property
    def loss(self) -> float:
        """Mean cross entropy."""
        return self._loss / max(self._images, 1)

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100 * self._correct / max(self._images, 1)

    def line(self, step: int) -> str:
        """``train step loss top1 top5``, as the originals print it."""
        top5 = 100 * self._correct5 / self._images
        return f"train {step:03d} {self.loss:e} {self.accuracy:f} {top5:f}"

    def state(self) -> list[float]:
        """All sums, for :meth:`load`."""
        return [self._loss, self._correct, self._correct5, self._images]

    def load(self, state: Sequence[float]) -> None:
        """Go on from a :meth:`state`."""
        self._loss, self._correct, self._correct5, self._images = state

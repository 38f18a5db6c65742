# SPDX-License-Identifier: Apache-2.0
"""Accuracy and loss of a network on a set of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LabelledImages", "evaluate", "kept_training", "logits_of"]


class LabelledImages(Protocol):
    """What evaluate needs of a set of images."""

    images: Tensor  # [n, 3, H, W], as `augmentation` takes them
    labels: Tensor  # int64 [n]


def logits_of(output: Tensor | tuple[Tensor, Tensor | None]) -> Tensor:
    """The logits of a network's output: itself, or the first of (logits, auxiliary logits)."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def kept_training(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Puts the training flags of these modules, not of those below them, back."""
    flags = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        for module, flag in flags:
            if module.training != flag:  # to set one takes a module longer than to read it
                module.training = flag


def evaluate(
    net: nn.Module,
    images: LabelledImages,
    augmentation: Callable[[Tensor], Tensor],
    batch_size: int = 96,
) -> tuple[float, float]:
    """Accuracy in percent and mean cross entropy over all images, in evaluation mode, no gradient.

    net: gives logits [b, classes] or (logits, auxiliary logits); it is left as it was, the
    training flag of each module included.
    augmentation: makes net's input of a batch of images, e.g. `Dataset.plain`; one with random
    parts raises, as it gets no generator.
    The mean is over images, so that the batch size matters only through rounding.
    Raises ValueError for an empty set or a batch size below 1.
    """
    count = len(images.labels)
    if count < 1 or batch_size < 1:
        raise ValueError(
            "evaluate: there must be an image and batch_size must be at least 1, "
            f"got {count} images, batch_size={batch_size}"
        )
    device = next((p.device for p in net.parameters()), images.images.device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    with kept_training(net.modules()), torch.no_grad():
        net.eval()
        for first in range(0, count, batch_size):
            x = augmentation(images.images[first : first + batch_size].to(device))
            y = images.labels[first : first + batch_size].to(device)
            logits = logits_of(net(x)).float()
            correct += (logits.argmax(1) == y).sum()
            loss += functional.cross_entropy(logits, y, reduction="none").double().sum()
    return 100 * correct.item() / count, loss.item() / count

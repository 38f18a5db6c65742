# SPDX-License-Identifier: Apache-2.0
"""Seeded batches of images in memory: epochs, single draws, and exact continuation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from darts_fast.data.augmentation import Augmentation
from darts_fast.data.images import Images

__all__ = ["Batches", "fixed_batches"]

Batch = tuple[Tensor, Tensor]  # float32 [b, 3, H, W] channels_last, int64 [b]


class Batches:
    """Augmented batches of `images`, all randomness from `generator`.

    Iteration is one epoch of len(self) batches: by default a pass in a fresh random order, whose
    last batch may be smaller (left out with drop_last); with replacement=True every batch is what
    `draw` gives, as in the search loop of the DARTS code, which takes the first batch of a new
    permutation at every step.

    `state_dict` holds order, position and the generator's state. After `load_state_dict` the next
    iteration yields the rest of the interrupted epoch, bit for bit; other iterations start a new
    epoch. Objects may share a generator if they are saved and loaded together. Starting an epoch
    ends the one before: going on with its iterator raises RuntimeError.

    share: of the size of a batch, says which of its images to make, where other processes make the
    others; labels are still those of the whole batch, and draws are made for all of it.

    Raises ValueError for an empty set, a batch size below 1, or an epoch without a batch.
    """

    def __init__(
        self,
        images: Images,
        augmentation: Augmentation,
        batch_size: int,
        generator: torch.Generator,
        *,
        replacement: bool = False,
        drop_last: bool = False,
        share: Callable[[int], slice] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"Batches: batch_size must be at least 1, got {batch_size}")
        if len(images) < (batch_size if drop_last else 1):
            raise ValueError(
                "Batches: an epoch must have a batch, "
                f"got {len(images)} images, batch_size={batch_size}, drop_last={drop_last}"
            )
        self.images = images
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.generator = generator
        self.replacement = replacement
        self.drop_last = drop_last
        self.share = share
        self._order: Tensor | None = None  # of the epoch under way, if without replacement
        self._position: int | None = None  # batches given in the epoch under way
        self._loaded = False  # the next iteration continues
        self._epoch: object = None  # identifies the iterator that is allowed to go on

    def __len__(self) -> int:
        """Batches in an epoch."""
        if self.drop_last:
            return len(self.images) // self.batch_size
        return -(-len(self.images) // self.batch_size)

    def draw(self) -> Batch:
        """The first batch of a fresh permutation; leaves the epoch under way alone."""
        return self._batch(self._permutation()[: self.batch_size])

    def forever(self) -> Iterator[Batch]:
        """Epoch after epoch; with replacement, draw after draw."""
        while True:
            if self.replacement:
                yield self.draw()
            else:
                yield from self

    def resize(self, batch_size: int) -> None:
        """Batches of another size from now on; an epoch under way is over."""
        self.batch_size = batch_size
        self._order = self._position = self._epoch = None

    def __iter__(self) -> Iterator[Batch]:
        if not self._loaded or self._position is None:
            self._order = None if self.replacement else self._permutation()
            self._position = 0
        self._loaded = False
        self._epoch = epoch = object()
        return self._rest(epoch)

    def _rest(self, epoch: object) -> Iterator[Batch]:
        while True:
            if self._epoch is not epoch or self._position is None:
                raise RuntimeError("Batches: this epoch was ended by the start of another one")
            if self._position == len(self):
                self._order = self._position = None
                return
            first = self._position * self.batch_size
            self._position += 1
            if self._order is None:
                yield self.draw()
            else:
                yield self._batch(self._order[first : first + self.batch_size])

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue; tensors and plain values, loadable with weights_only."""
        return {
            "size": len(self.images),
            "batch_size": self.batch_size,
            "replacement": self.replacement,
            "order": None if self._order is None else self._order.clone(),
            "position": self._position,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; ValueError if it was saved with other images, size or sampling."""
        ours = (len(self.images), self.batch_size, self.replacement)
        theirs = (state["size"], state["batch_size"], state["replacement"])
        if ours != theirs:
            raise ValueError(
                "Batches: the state must be of the same (images, batch_size, replacement), "
                f"got {theirs} for {ours}"
            )
        order = state["order"]
        self._order = None if order is None else order.clone()
        self._position = state["position"]
        self._loaded = True
        self._epoch = None
        self.generator.set_state(state["generator"].cpu())

    def _permutation(self) -> Tensor:
        device = self.generator.device
        return torch.randperm(len(self.images), generator=self.generator, device=device)

    def _batch(self, indices: Tensor) -> Batch:
        if self.share is None:
            chosen = self.images.subset(indices)
            return self.augmentation(chosen.images, self.generator), chosen.labels
        own = self.share(len(indices))
        part = self.images.subset(indices[own]).images
        labels = self.images.labels[indices.to(self.images.labels.device)]
        return self.augmentation(part, self.generator, share=(own, len(indices))), labels


def fixed_batches(images: Images, augmentation: Augmentation, batch_size: int) -> list[Batch]:
    """All images in index order, in batches of `batch_size` (the last may be smaller).

    Raises ValueError where the augmentation has a random part: the batches must be the same at
    every call.
    """
    if augmentation.random:
        raise ValueError(
            f"fixed_batches: the augmentation must have no random part, got {augmentation}"
        )
    if batch_size < 1:
        raise ValueError(f"fixed_batches: batch_size must be at least 1, got {batch_size}")
    pixels = images.images.split(batch_size)
    labels = images.labels.split(batch_size)
    return [(augmentation(x), y) for x, y in zip(pixels, labels, strict=True)]

# SPDX-License-Identifier: Apache-2.0
"""A data set from labelled images that come without a published recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from darts_fast.data.augmentation import Augmentation
from darts_fast.data.images import DataError, Dataset, Images, channel_statistics
from darts_fast.data.splits import held_out_split, interleaved

__all__ = ["assemble", "held_out"]


def assemble(
    place: Path | str, name: str, train: Images, test: Images | None, class_names: Sequence[str]
) -> Dataset:
    """The data set with mean and deviation of all training images, a crop with a padding of an
    eighth of the height, and flips.

    Without a test part a fifth of each class becomes it. Training images sorted by class are put
    in a fixed order in which classes are interleaved: `limit` and the cut for the search take
    prefixes. Any other order is kept.

    place: begins every message. Raises DataError for fewer than 2 classes, parts of different
    sizes, or too few images to give one to the test.
    """
    if len(class_names) < 2:
        raise DataError(f"{place}: there must be at least 2 classes, got {list(class_names)}")
    if test is None:
        train, test = held_out(place, train)
    sizes = ["x".join(map(str, part.images.shape[2:])) for part in (train, test)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{place}: test images must have the size of the training images, "
            f"got {sizes[1]} for {sizes[0]}"
        )
    if bool((train.labels[1:] >= train.labels[:-1]).all()):
        train = interleaved(train)
    mean, std = channel_statistics(train)
    augmentation = Augmentation(mean, std, pad=max(1, train.images.shape[2] // 8))
    return Dataset(name, train, test, tuple(class_names), augmentation)


def held_out(place: Path | str, images: Images) -> tuple[Images, Images]:
    """A fixed, stratified 80/20 split; DataError where no class is large enough."""
    train, test = held_out_split(images.labels)
    if not len(test):
        raise DataError(
            f"{place}: a class must have at least 3 images to give one to the test, "
            f"got {len(images)} images"
        )
    return images.subset(train), images.subset(test)

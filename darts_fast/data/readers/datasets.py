# SPDX-License-Identifier: Apache-2.0
"""Data set objects of torch, torchvision and others, read into memory."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from darts_fast.data.images import DataError, Dataset, Images
from darts_fast.data.readers.assemble import assemble
from darts_fast.data.readers.checks import checked_labels, no_gaps, one_line
from darts_fast.data.readers.pixels import as_rgb, stack

__all__ = ["LabelledImages", "from_dataset"]

_READ_TWICE = 8


class LabelledImages(Protocol):
    """What `from_dataset` reads: a length, and a pair of image and integer label at each index.

    An image is a Pillow image; or an array or tensor, uint8 or float from 0 to 1, [H, W],
    [H, W, C] or [C, H, W] with C of 1 or 3.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


def from_dataset(
    train: LabelledImages,
    test: LabelledImages | None = None,
    *,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    image_size: int | None = None,
) -> Dataset:
    """Read data set objects, e.g. of torchvision, into memory, each image once.

    train, test: see `LabelledImages`. Without `test` a fixed fifth of each class becomes it. Their
        transforms must neither draw nor normalise: augmentation and normalisation come later, by
        mean and deviation of the training images. Training images sorted by class, as those of an
        image folder, are interleaved in a fixed order; any other order is kept.
    name: default the type's name.
    class_names: default `train.classes` where there is one, else the labels themselves.
    image_size: as for `load_data`.

    Raises TypeError for an object without length or index, ValueError for an image_size below 1,
    and DataError for images or labels that cannot be used; it names the index, and the file where
    the object has torchvision's `samples`.
    """
    name = name or type(train).__name__
    names = class_names if class_names is not None else getattr(train, "classes", None)
    classes = None if names is None else len(names)
    images = _read(train, name, "training", image_size, classes)
    if names is None:
        no_gaps(name, "training labels", images.labels.numpy())
        names = range(int(images.labels.max()) + 1)
    held = None
    if test is not None:
        held = _read(test, name, "test", image_size, len(names))
    return assemble(name, name, images, held, [str(n) for n in names])


def _read(
    dataset: LabelledImages, name: str, part: str, image_size: int | None, classes: int | None
) -> Images:
    place = f"{name}: {part} image"
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"{place}s: the data set must have a length and an index, got {type(dataset).__name__}"
        )
    count = len(dataset)
    if not count:
        raise DataError(f"{place}s: there must be one at least, got an empty data set")
    labels: list[int] = []

    def samples() -> Iterator[tuple[str, Image.Image]]:
        for i in range(count):
            where = _where(dataset, place, i)
            image, label = _sample(dataset, i, where)
            if i < _READ_TWICE and _sample(dataset, i, where)[0].tobytes() != image.tobytes():
                raise DataError(
                    f"{where}: must be the same at every reading, got two different ones; the "
                    "transform must not draw, darts_fast augments by itself"
                )
            labels.append(label)
            yield where, image

    pixels = stack(samples(), count, image_size)
    return Images(pixels, checked_labels(name, f"{part} labels", np.array(labels), count, classes))


def _where(dataset: LabelledImages, place: str, i: int) -> str:
    """The image's index, and its file where torchvision's `samples` tell it."""
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, list) and i < len(samples) and isinstance(samples[i], tuple):
        return f"{place} {i} ({samples[i][0]})"
    return f"{place} {i}"


def _sample(dataset: LabelledImages, i: int, where: str) -> tuple[Image.Image, int]:
    try:
        item = dataset[i]
    except Exception as error:
        raise DataError(f"{where}: reading it failed with {one_line(error)}") from error
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        size = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise DataError(f"{where}: must be a pair (image, label), got {type(item).__name__}{size}")
    image, label = item
    try:
        index = operator.index(label)
    except TypeError:
        raise DataError(f"{where}: its label must be an integer, got {str(label)[:60]}") from None
    return as_rgb(image, where), index

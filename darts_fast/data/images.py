# SPDX-License-Identifier: Apache-2.0
"""Labelled images held in memory, and the data set made of a training and a test part of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from darts_fast.data.augmentation import Augmentation

__all__ = ["DataError", "Dataset", "Images", "channel_statistics"]


class DataError(ValueError):
    """A data set that cannot be used: one line with the file, the rule and the values."""


class Images:
    """Images and labels as two tensors.

    images: uint8 [n, 3, H, W], kept in channels_last memory. labels: int64 [n].
    Raises TypeError for another dtype and ValueError for another shape.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or labels.dtype != torch.int64:
            raise TypeError(
                "Images: images must be uint8 and labels int64, "
                f"got {images.dtype} and {labels.dtype}"
            )
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"Images: images must be [n, 3, H, W], got {list(images.shape)}")
        if labels.shape != images.shape[:1]:
            raise ValueError(
                "Images: there must be one label per image, "
                f"got labels {list(labels.shape)} for {len(images)} images"
            )
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Images({len(self)} x {list(self.images.shape[1:])}, {self.images.device})"

    def subset(self, indices: Tensor) -> Images:
        """A copy of the images at `indices`, int64 [m], in that order."""
        indices = indices.to(self.labels.device)
        # Rows of the NHWC view are contiguous, so that one image is one memory copy.
        images = self.images.permute(0, 2, 3, 1).index_select(0, indices).permute(0, 3, 1, 2)
        return Images(images, self.labels.index_select(0, indices))

    def take(self, n: int) -> Images:
        """The first n images; ValueError unless 1 <= n <= len."""
        if not 1 <= n <= len(self):
            raise ValueError(f"limit: must be from 1 to the {len(self)} training images, got {n}")
        return Images(self.images[:n], self.labels[:n])

    def to(self, device: torch.device | str) -> Images:
        """The same images on `device`."""
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    augmentation is the default for training; `dataclasses.replace` makes variants, e.g. with
    cutout. The search splits `train` further with `split`.
    """

    name: str
    train: Images
    test: Images
    class_names: tuple[str, ...]
    augmentation: Augmentation

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0 to num_classes - 1."""
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.train.images.shape[2:]
        return height, width

    @property
    def mean(self) -> tuple[float, float, float]:
        """Mean per channel, scale 0 to 1, that images are normalised with."""
        return self.augmentation.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """Standard deviation per channel, scale 0 to 1, that images are normalised with."""
        return self.augmentation.std

    @property
    def plain(self) -> Augmentation:
        """Normalisation only: for evaluation."""
        return self.augmentation.plain

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set with its tensors on `device`."""
        train, test = self.train.to(device), self.test.to(device)
        return Dataset(self.name, train, test, self.class_names, self.augmentation)


def channel_statistics(
    images: Images,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation over all pixels per channel, scale 0 to 1.

    Computed from the histogram of the 256 values, so that the order of the pixels does not matter.
    The deviation is at least 1/255: a constant channel can be normalised.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(3):
        plane = images.images[:, channel].reshape(-1).cpu()
        share = torch.bincount(plane, minlength=256).double() / plane.numel()
        mean = (share * values).sum()
        means.append(mean.item())
        deviations.append(max((share * (values - mean) ** 2).sum().sqrt().item(), 1 / 255))
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])

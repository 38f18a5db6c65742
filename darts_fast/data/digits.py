# SPDX-License-Identifier: Apache-2.0
"""The embedded data set: scikit-learn's handwritten digits, real images that need no download."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from darts_fast.data.augmentation import Augmentation
from darts_fast.data.images import DataError, Dataset, Images, channel_statistics

__all__ = ["load_digits", "stratified_split"]


def load_digits(size: int) -> Dataset:
    """1,797 grey digits in three equal channels: 1,438 for training and 359 for the test.

    size: 8 as they are, or 16 by bilinear interpolation. The order and the split (80/20 in each
    class) are fixed. Training crops by one pixel and neither flips nor cuts out: a flip makes
    another sign of most digits.
    Raises ValueError for another size, DataError without scikit-learn.
    """
    if size not in (8, 16):
        raise ValueError(f"digits: size must be 8 or 16, got {size}")
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise DataError(
            f"digits: scikit-learn, which carries the images, must be installed, got: {error}"
        ) from error
    grey, target = load(return_X_y=True)
    pixels = torch.from_numpy(np.asarray(grey, dtype=np.float64)).view(-1, 1, 8, 8) * (255 / 16)
    if size == 16:
        pixels = functional.interpolate(pixels, scale_factor=2, mode="bilinear")
    images = pixels.round().to(torch.uint8).expand(-1, 3, -1, -1)
    everything = Images(images, torch.from_numpy(np.asarray(target, dtype=np.int64)))
    train, test = (everything.subset(part) for part in stratified_split(everything.labels))
    mean, std = channel_statistics(train)
    augmentation = Augmentation(mean, std, pad=1, flip=False)
    names = tuple(str(digit) for digit in range(10))
    return Dataset("digits" if size == 8 else "digits16", train, test, names, augmentation)


def stratified_split(labels: Tensor, test_share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Fixed random training and test indices; each class gives round(test_share * n) to the test.

    labels: int64 [n]. The same labels give the same split at every time and place: the stream of
    NumPy's RandomState is frozen (NEP 19). In both parts the classes are interleaved evenly, so
    that every prefix is a fair sample.
    """
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    shuffled = labels.cpu()[order]
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    position = torch.zeros(len(labels), dtype=torch.float64)  # within its class, from 0 to 1
    for label in shuffled.unique():
        members = (shuffled == label).nonzero().flatten()
        count = round(test_share * len(members))
        for part in (members[:count], members[count:]):
            position[part] = (torch.arange(len(part), dtype=torch.float64) + 0.5) / len(part)
        in_test[members[:count]] = True
    interleaved = position.argsort(stable=True)
    in_test, order = in_test[interleaved], order[interleaved]
    return order[~in_test], order[in_test]

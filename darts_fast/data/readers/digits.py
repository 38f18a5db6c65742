# SPDX-License-Identifier: Apache-2.0
"""The embedded data set: scikit-learn's handwritten digits, real images that need no download."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from darts_fast.data.augmentation import Augmentation
from darts_fast.data.images import DataError, Dataset, Images, channel_statistics
from darts_fast.data.splits import held_out_split

__all__ = ["load_digits"]


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
    train, test = (everything.subset(part) for part in held_out_split(everything.labels))
    mean, std = channel_statistics(train)
    augmentation = Augmentation(mean, std, pad=1, flip=False)
    names = tuple(str(digit) for digit in range(10))
    return Dataset("digits" if size == 8 else "digits16", train, test, names, augmentation)

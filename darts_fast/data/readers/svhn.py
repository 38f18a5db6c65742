# SPDX-License-Identifier: Apache-2.0
"""Street View House Numbers, cropped digits, in the .mat files as distributed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from darts_fast.data.augmentation import Augmentation
from darts_fast.data.images import DataError, Dataset, Images
from darts_fast.data.readers.checks import entry, kind_of, one_line

__all__ = ["SVHN_EXTRA", "SVHN_FILES", "load_svhn"]

SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")
SVHN_EXTRA = "extra_32x32.mat"

# As the RobustDARTS and DARTS-PT code publish and use them, flips included.
_SVHN = Augmentation(mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970))


def load_svhn(folder: Path, *, extra: bool = False) -> Dataset:
    """train_32x32.mat and test_32x32.mat (Netzer et al. 2011); published normalisation.

    extra: append extra_32x32.mat to the training images.
    """
    train, test = (_mat(folder / name) for name in SVHN_FILES)
    if extra:
        more = _mat(folder / SVHN_EXTRA)
        train = Images(
            torch.cat([train.images, more.images]), torch.cat([train.labels, more.labels])
        )
    return Dataset("svhn", train, test, tuple(str(digit) for digit in range(10)), _SVHN)


def _mat(path: Path) -> Images:
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            content = loadmat(file, variable_names=("X", "y"))
    except FileNotFoundError:
        raise DataError(f"{path}: the file must exist, got none") from None
    # A corrupt file makes scipy and zlib raise nearly anything.
    except Exception as error:
        raise DataError(
            f"{path}: the file must be a complete .mat file, got {one_line(error)}"
        ) from None
    x, y = (entry(path, content, key) for key in ("X", "y"))
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3) or not x.size:
        raise DataError(f"{path}: X must be uint8 [32, 32, 3, n] with n > 0, got {kind_of(x)}")
    count = x.shape[3]
    if y.dtype.kind not in "iu" or y.shape != (count, 1):
        raise DataError(f"{path}: y must be integers [{count}, 1], got {kind_of(y)}")
    bad = np.flatnonzero((y < 1) | (y > 10))
    if len(bad):
        raise DataError(
            f"{path}: y must be from 1 to 10 (the digit 0), got {y[bad[0], 0]} at image {bad[0]}"
        )
    labels = torch.from_numpy(y[:, 0].astype(np.int64) % 10)
    return Images(torch.from_numpy(x).permute(3, 2, 0, 1), labels)

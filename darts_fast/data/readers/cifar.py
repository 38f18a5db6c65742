# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and CIFAR-100 in the python layout as distributed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from darts_fast.data.augmentation import Augmentation
from darts_fast.data.images import DataError, Dataset, Images
from darts_fast.data.readers.checks import checked_labels, entry, kind_of
from darts_fast.data.readers.pickles import read_pickle

__all__ = ["CIFAR10_FOLDER", "CIFAR100_FOLDER", "load_cifar10", "load_cifar100"]

CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR100_FOLDER = "cifar-100-python"

# Mean and standard deviation as the DARTS code (CIFAR-10) and the RobustDARTS code (CIFAR-100)
# publish and use them.
_CIFAR10 = Augmentation(
    mean=(0.49139968, 0.48215827, 0.44653124), std=(0.24703233, 0.24348505, 0.26158768)
)
_CIFAR100 = Augmentation(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))


def load_cifar10(folder: Path) -> Dataset:
    """The images of batches.meta, data_batch_1 to 5 and test_batch; published normalisation."""
    names = _class_names(folder / "batches.meta", "label_names")
    files = [folder / f"data_batch_{i}" for i in range(1, 6)]
    parts = [_cifar_batch(file, "labels", len(names)) for file in files]
    train = Images(
        torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    )
    test = _cifar_batch(folder / "test_batch", "labels", len(names))
    return Dataset("cifar10", train, test, names, _CIFAR10)


def load_cifar100(folder: Path) -> Dataset:
    """The images of meta, train and test with their fine labels; published normalisation."""
    names = _class_names(folder / "meta", "fine_label_names")
    train = _cifar_batch(folder / "train", "fine_labels", len(names))
    test = _cifar_batch(folder / "test", "fine_labels", len(names))
    return Dataset("cifar100", train, test, names, _CIFAR100)


def _class_names(path: Path, key: str) -> tuple[str, ...]:
    names = entry(path, read_pickle(path), key)
    if not isinstance(names, list) or len(names) < 2:
        raise DataError(f"{path}: {key} must be a list of class names, got {str(names)[:60]}")
    return tuple(n.decode("latin1") if isinstance(n, bytes) else str(n) for n in names)


def _cifar_batch(path: Path, key: str, classes: int) -> Images:
    content = read_pickle(path)
    rows = entry(path, content, "data")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8:
        raise DataError(f"{path}: data must be a uint8 array, got {kind_of(rows)}")
    if rows.ndim != 2 or rows.shape[1] != 3072 or not len(rows):
        raise DataError(f"{path}: data must be [n, 3072] with n > 0, got {list(rows.shape)}")
    listed = entry(path, content, key)
    try:
        labels = np.asarray(listed)
    except ValueError:
        raise DataError(
            f"{path}: {key} must be integers [{len(rows)}], got a ragged list"
        ) from None
    images = torch.tensor(rows).view(-1, 3, 32, 32)
    return Images(images, checked_labels(path, key, labels, len(rows), classes))

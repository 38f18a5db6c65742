# SPDX-License-Identifier: Apache-2.0
"""Readers of image sets, one module each, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from darts_fast.data.images import DataError, Dataset
from darts_fast.data.readers.cifar import (
    CIFAR10_FOLDER,
    CIFAR100_FOLDER,
    load_cifar10,
    load_cifar100,
)
from darts_fast.data.readers.datasets import LabelledImages, from_dataset
from darts_fast.data.readers.digits import load_digits
from darts_fast.data.readers.folders import holds_folders, load_image_folder
from darts_fast.data.readers.npz import load_npz, load_npz_folder
from darts_fast.data.readers.svhn import SVHN_EXTRA, SVHN_FILES, load_svhn

__all__ = ["LabelledImages", "from_dataset", "load_data"]

_NPZ_FILES = ("train.npz", "test.npz")
_KINDS = (
    f"{CIFAR10_FOLDER}, {CIFAR100_FOLDER}, {' and '.join(_NPZ_FILES)}, {' and '.join(SVHN_FILES)}, "
    "or a folder of images per class"
)


def load_data(
    spec: str | Path, *, limit: int | None = None, image_size: int | None = None
) -> Dataset:
    """Load an image set into memory.

    spec: "digits" (8x8) or "digits16" (16x16), the embedded set; or a path to

    - the folder cifar-10-batches-py or cifar-100-python (fine labels) as distributed, or its
      parent;
    - the folder with SVHN's train_32x32.mat and test_32x32.mat; or extra_32x32.mat beside them,
      which adds these images to the training part;
    - a .npz file with x, uint8 [n, H, W, 3] or [n, H, W, 1] (repeated to three channels), and y,
      integers [n]: split 80/20 into training and test, at random but always the same, per class;
    - a folder with such files named train.npz and test.npz;
    - a folder with image files in one folder per class, as they are (split as above) or in train
      and test (or val).

    limit: use the first N training images only.
    image_size: side to which the centre square of every image file is resized; needed where image
    files differ in size, and refused for other sets unless they have that size.

    Mean and standard deviation are the published ones for CIFAR and SVHN and those of all training
    images for others. Training on a path's images crops with a padding of an eighth of the height
    (4 of 32 pixels) and flips. Training images sorted by class are interleaved in a fixed order.

    Raises DataError (a ValueError) in one line that names file, rule and values, and ValueError
    for a limit below 1 or above the number of training images, or an image_size below 1.
    """
    data = _load(spec, image_size)
    if image_size is not None and data.image_size != (image_size, image_size):
        height, width = data.image_size
        raise DataError(
            f"{spec}: image_size is for folders of image files, this set has {height}x{width}, "
            f"got {image_size}"
        )
    if limit is None:
        return data
    return replace(data, train=data.train.take(limit))


def _load(spec: str | Path, image_size: int | None) -> Dataset:
    if spec in ("digits", "digits16"):
        return load_digits(16 if spec == "digits16" else 8)
    path = Path(spec)
    if not path.exists():
        raise DataError(f"{path}: data must be 'digits', 'digits16' or a path, got no such path")
    if path.is_file():
        return _load_file(path)
    found = {name: folder for name in _READERS if (folder := _folder(path, name)) is not None}
    if len(found) > 1:
        raise DataError(f"{path}: must hold one data set, got {' and '.join(found)}; name one")
    if found:
        name, folder = found.popitem()
        return _READERS[name](folder)
    if not holds_folders(path):
        raise DataError(f"{path}: must be or hold {_KINDS}, got none of them")
    return load_image_folder(path, image_size)


def _load_file(path: Path) -> Dataset:
    if path.name == SVHN_EXTRA:
        return load_svhn(path.parent, extra=True)
    if path.suffix != ".npz":
        raise DataError(
            f"{path}: a data file must be .npz or SVHN's {SVHN_EXTRA}, got '{path.name}'"
        )
    return load_npz(path)


def _folder(path: Path, name: str) -> Path | None:
    """The folder of the layout `name` that `path` means, if any."""
    if name in (CIFAR10_FOLDER, CIFAR100_FOLDER) and (path / name).is_dir():
        return path / name
    if path.name == name or any((path / sign).is_file() for sign in _SIGNS[name]):
        return path
    return None


_READERS: dict[str, Callable[[Path], Dataset]] = {
    CIFAR10_FOLDER: load_cifar10,
    CIFAR100_FOLDER: load_cifar100,
    ".npz files": load_npz_folder,
    "SVHN's .mat files": load_svhn,
}
# Files that tell a layout, whatever the folder is called.
_SIGNS = {
    CIFAR10_FOLDER: ("batches.meta", "data_batch_1"),
    CIFAR100_FOLDER: ("meta", "train"),
    ".npz files": _NPZ_FILES,
    "SVHN's .mat files": SVHN_FILES,
}

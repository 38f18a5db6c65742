# SPDX-License-Identifier: Apache-2.0
"""Readers of image sets: the CIFAR python layout and .npz files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darts_fast.data.augmentation import Augmentation
from darts_fast.data.digits import load_digits, stratified_split
from darts_fast.data.images import DataError, Dataset, Images, channel_statistics
from darts_fast.data.pickles import read_pickle

__all__ = ["load_data"]

# Mean and standard deviation as the DARTS code (CIFAR-10) and the RobustDARTS code (CIFAR-100)
# publish and use them.
_CIFAR10 = Augmentation(
    mean=(0.49139968, 0.48215827, 0.44653124), std=(0.24703233, 0.24348505, 0.26158768)
)
_CIFAR100 = Augmentation(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))

_CIFAR10_FOLDER = "cifar-10-batches-py"
_CIFAR100_FOLDER = "cifar-100-python"


def load_data(spec: str | Path, *, limit: int | None = None) -> Dataset:
    """Load an image set into memory.

    spec: "digits" (8x8) or "digits16" (16x16), the embedded set; or a path to

    - the folder cifar-10-batches-py or cifar-100-python (fine labels) as distributed, or its
      parent;
    - a .npz file with x, uint8 [n, H, W, 3] or [n, H, W, 1] (repeated to three channels), and y,
      integers [n]: split 80/20 into training and test, at random but always the same, per class;
    - a folder with such files named train.npz and test.npz.

    limit: use the first N training images only. Mean and standard deviation are the published ones
    for CIFAR and those of all training images for others. Training on a path's images crops with
    a padding of an eighth of the height (4 of 32 pixels) and flips.

    Raises DataError (a ValueError) in one line that names file, rule and values, and ValueError
    for a limit below 1 or above the number of training images.
    """
    data = _load(spec)
    if limit is None:
        return data
    return replace(data, train=data.train.take(limit))


def _load(spec: str | Path) -> Dataset:
    if spec in ("digits", "digits16"):
        return load_digits(16 if spec == "digits16" else 8)
    path = Path(spec)
    if not path.exists():
        raise DataError(f"{path}: data must be 'digits', 'digits16' or a path, got no such path")
    if path.is_file():
        if path.suffix != ".npz":
            raise DataError(f"{path}: a data file must be .npz, got '{path.suffix}'")
        return _single_npz(path)
    found = {name: folder for name in _READERS if (folder := _folder(path, name)) is not None}
    if len(found) > 1:
        raise DataError(f"{path}: must hold one data set, got {' and '.join(found)}; name one")
    if not found:
        raise DataError(
            f"{path}: must be or hold {_CIFAR10_FOLDER}, {_CIFAR100_FOLDER} or train.npz and "
            "test.npz, got none of them"
        )
    name, folder = found.popitem()
    return _READERS[name](folder)


def _folder(path: Path, name: str) -> Path | None:
    """The folder of the layout `name` that `path` means, if any."""
    if name == "train.npz":
        return path if any((path / f).exists() for f in ("train.npz", "test.npz")) else None
    if (path / name).is_dir():
        return path / name
    signs = {_CIFAR10_FOLDER: ["batches.meta", "data_batch_1"], _CIFAR100_FOLDER: ["meta", "train"]}
    if path.name == name or any((path / sign).is_file() for sign in signs[name]):
        return path
    return None


def _cifar10(folder: Path) -> Dataset:
    names = _class_names(folder / "batches.meta", "label_names")
    files = [folder / f"data_batch_{i}" for i in range(1, 6)]
    parts = [_cifar_batch(file, "labels", len(names)) for file in files]
    train = Images(
        torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    )
    test = _cifar_batch(folder / "test_batch", "labels", len(names))
    return Dataset("cifar10", train, test, names, _CIFAR10)


def _cifar100(folder: Path) -> Dataset:
    names = _class_names(folder / "meta", "fine_label_names")
    train = _cifar_batch(folder / "train", "fine_labels", len(names))
    test = _cifar_batch(folder / "test", "fine_labels", len(names))
    return Dataset("cifar100", train, test, names, _CIFAR100)


def _class_names(path: Path, key: str) -> tuple[str, ...]:
    names = _entry(path, read_pickle(path), key)
    if not isinstance(names, list) or len(names) < 2:
        raise DataError(f"{path}: {key} must be a list of class names, got {str(names)[:60]}")
    return tuple(n.decode("latin1") if isinstance(n, bytes) else str(n) for n in names)


def _cifar_batch(path: Path, key: str, classes: int) -> Images:
    content = read_pickle(path)
    rows = _entry(path, content, "data")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8:
        raise DataError(f"{path}: data must be a uint8 array, got {_kind(rows)}")
    if rows.ndim != 2 or rows.shape[1] != 3072 or not len(rows):
        raise DataError(f"{path}: data must be [n, 3072] with n > 0, got {list(rows.shape)}")
    listed = _entry(path, content, key)
    try:
        labels = np.asarray(listed)
    except ValueError:
        raise DataError(
            f"{path}: {key} must be integers [{len(rows)}], got a ragged list"
        ) from None
    images = torch.tensor(rows).view(-1, 3, 32, 32)
    return Images(images, _labels(path, key, labels, len(rows), classes))


def _single_npz(path: Path) -> Dataset:
    images = _npz(path, None)
    parts = stratified_split(images.labels)
    if not all(len(part) for part in parts):
        raise DataError(
            f"{path}: a class must have at least 3 images to give one to the test, "
            f"got {len(images)} images"
        )
    train, test = (images.subset(part) for part in parts)
    return _npz_dataset(path, train, test)


def _npz_folder(folder: Path) -> Dataset:
    train = _npz(folder / "train.npz", None)
    test = _npz(folder / "test.npz", int(train.labels.max()) + 1)
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = [list(part.images.shape[2:]) for part in (train, test)]
        raise DataError(
            f"{folder / 'test.npz'}: images must have the size of train.npz, "
            f"got {sizes[1]} for {sizes[0]}"
        )
    return _npz_dataset(folder, train, test)


def _npz_dataset(path: Path, train: Images, test: Images) -> Dataset:
    mean, std = channel_statistics(train)
    augmentation = Augmentation(mean, std, pad=max(1, train.images.shape[2] // 8))
    names = tuple(str(label) for label in range(int(train.labels.max()) + 1))
    return Dataset(path.stem, train, test, names, augmentation)


def _npz(path: Path, classes: int | None) -> Images:
    """The images of one file; classes=None takes them from its labels, each of which must occur."""
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise DataError(f"{path}: must be an archive of arrays x and y, got one array")
        with file:
            content = {key: file[key] for key in ("x", "y") if key in file}
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: the file must exist, got none") from None
    # A corrupt archive makes zipfile, zlib and numpy raise nearly anything.
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{path}: the file must be a complete .npz without pickled objects, "
            f"got {type(error).__name__}: {reason}"
        ) from None
    x, y = (_entry(path, content, key) for key in ("x", "y"))
    if x.dtype != np.uint8:
        raise DataError(f"{path}: x must be uint8, got {x.dtype}")
    if x.ndim != 4 or x.shape[3] not in (1, 3) or not x.size:
        raise DataError(f"{path}: x must be [n, H, W, 3 or 1], not empty, got {list(x.shape)}")
    labels = _labels(path, "y", y, len(x), classes)
    if classes is None:
        values = np.unique(y)
        largest, first = int(values[-1]), int(np.argmax(values != np.arange(len(values))))
        if largest != len(values) - 1:
            raise DataError(
                f"{path}: y must use every class from 0 to its largest label {largest}, "
                f"got no image of {largest + 1 - len(values)} of them, the first is {first}"
            )
    images = torch.from_numpy(x).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
    return Images(images, labels)


def _entry(path: Path, content: dict[str, Any], key: str) -> Any:
    if key not in content:
        raise DataError(f"{path}: must have an entry '{key}', got {sorted(content)}")
    return content[key]


def _labels(path: Path, key: str, labels: np.ndarray, count: int, classes: int | None) -> Tensor:
    """Checked labels, int64 [count]."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: {key} must be integers [{count}], got {_kind(labels)}")
    if len(labels) != count:
        raise DataError(
            f"{path}: {key} must have one label per image, got {len(labels)} for {count}"
        )
    bad = (labels < 0) if classes is None else (labels < 0) | (labels >= classes)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        rule = "at least 0" if classes is None else f"from 0 to {classes - 1}"
        raise DataError(f"{path}: {key} must be {rule}, got {labels[first]} at image {first}")
    return torch.from_numpy(labels.astype(np.int64))


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__


_READERS = {_CIFAR10_FOLDER: _cifar10, _CIFAR100_FOLDER: _cifar100, "train.npz": _npz_folder}

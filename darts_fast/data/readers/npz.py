# SPDX-License-Identifier: Apache-2.0
"""Arrays of images in .npz files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from darts_fast.data.images import DataError, Dataset, Images
from darts_fast.data.readers.assemble import assemble
from darts_fast.data.readers.checks import checked_labels, entry, no_gaps, one_line

__all__ = ["load_npz", "load_npz_folder"]


def load_npz(path: Path) -> Dataset:
    """One file, a fixed fifth of each class held out for the test."""
    return _assemble(path, _npz(path, None), None)


def load_npz_folder(folder: Path) -> Dataset:
    """The files train.npz and test.npz of a folder."""
    train = _npz(folder / "train.npz", None)
    test = _npz(folder / "test.npz", int(train.labels.max()) + 1)
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = [list(part.images.shape[2:]) for part in (train, test)]
        raise DataError(
            f"{folder / 'test.npz'}: images must have the size of train.npz, "
            f"got {sizes[1]} for {sizes[0]}"
        )
    return _assemble(folder, train, test)


def _assemble(path: Path, train: Images, test: Images | None) -> Dataset:
    names = [str(label) for label in range(int(train.labels.max()) + 1)]
    return assemble(path, path.resolve().stem, train, test, names)


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
        raise DataError(
            f"{path}: the file must be a complete .npz without pickled objects, "
            f"got {one_line(error)}"
        ) from None
    x, y = (entry(path, content, key) for key in ("x", "y"))
    if x.dtype != np.uint8:
        raise DataError(f"{path}: x must be uint8, got {x.dtype}")
    if x.ndim != 4 or x.shape[3] not in (1, 3) or not x.size:
        raise DataError(f"{path}: x must be [n, H, W, 3 or 1], not empty, got {list(x.shape)}")
    labels = checked_labels(path, "y", y, len(x), classes)
    if classes is None:
        no_gaps(path, "y", y)
    images = torch.from_numpy(x).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
    return Images(images, labels)

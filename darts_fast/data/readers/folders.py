# SPDX-License-Identifier: Apache-2.0
"""Folders of image files, one folder per class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import torch

from darts_fast.data.classes import some
from darts_fast.data.images import DataError, Dataset, Images
from darts_fast.data.readers.assemble import assemble
from darts_fast.data.readers.pixels import read_rgb, stack

__all__ = ["holds_folders", "load_image_folder"]

_EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm"),
)
_IGNORED = ("__MACOSX", "Thumbs.db", "desktop.ini")  # and names that begin with a dot
_PARTS = {"train", "test", "val"}


def load_image_folder(path: Path, image_size: int | None = None) -> Dataset:
    """The image files under `path`.

    Two layouts: train/CLASS/... beside test/CLASS/... (or val/, which is not read where there is a
    test/); or CLASS/... alone, of which a fixed fifth of each class is the test. Classes are in the
    order of their sorted names, files in that of their sorted paths; folders within a class are
    read too. Hidden files are ignored.

    image_size: see `load_data`. Raises DataError that names the file or folder.
    """
    parts = set(_folders(path))
    if "train" in parts and (_folders(path / "train") or parts <= _PARTS):
        held = next((part for part in ("test", "val") if part in parts), None)
        if held is None:
            raise DataError(
                f"{path}: beside train there must be a folder test or val, got {some(parts)}; "
                f"{path / 'train'} alone would be split 80/20"
            )
        names = _classes(path / "train")
        unknown = set(_folders(path / held)) - set(names)
        if unknown:
            raise DataError(
                f"{path / held}: its classes must be among those of train, got {some(unknown)} too"
            )
        train = _read(path / "train", names, image_size)
        test = _read(path / held, names, image_size)
        return assemble(path, path.resolve().name, train, test, names)
    names = _classes(path)
    return assemble(path, path.resolve().name, _read(path, names, image_size), None, names)


def holds_folders(path: Path) -> bool:
    """Whether a folder has visible folders in it."""
    return bool(_folders(path))


def _folders(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir() if _visible(item.name) and item.is_dir())


def _visible(name: str) -> bool:
    return not name.startswith(".") and name not in _IGNORED


def _classes(path: Path) -> list[str]:
    names = _folders(path)
    if len(names) < 2:
        raise DataError(
            f"{path}: there must be a folder for each of 2 or more classes, got {names}"
        )
    empty = [name for name in names if not _files(path / name)]
    if empty:
        raise DataError(f"{path}: every class must have an image, got none in {some(empty)}")
    return names


def _files(folder: Path) -> list[Path]:
    """All image files under `folder`, sorted."""

    def unreadable(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename}: the folder must be readable, got {error.strerror}")

    found = []
    seen = set()
    for place, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            raise DataError(f"{place}: a class must have a folder once, got a link to {real} again")
        seen.add(real)
        folders[:] = filter(_visible, folders)
        found += [Path(place, name) for name in files if _visible(name)]
    for path in sorted(found):
        if path.suffix.lower() not in _EXTENSIONS:
            raise DataError(
                f"{path}: a file in a class's folder must be an image "
                f"({' '.join(_EXTENSIONS)}), got '{path.suffix}'"
            )
    return sorted(found)


def _read(path: Path, names: list[str], image_size: int | None) -> Images:
    for item in sorted(path.iterdir()):
        if _visible(item.name) and item.suffix.lower() in _EXTENSIONS and item.is_file():
            raise DataError(
                f"{item}: an image must lie in the folder of a class, got it beside them"
            )
    files, labels = [], []
    for label, name in enumerate(names):
        found = _files(path / name) if (path / name).is_dir() else []
        files += found
        labels += [label] * len(found)
    if not files:
        raise DataError(f"{path}: there must be an image in the folder of a class, got none")
    images = ((str(file), read_rgb(file)) for file in files)
    return Images(stack(images, len(files), image_size), torch.tensor(labels))

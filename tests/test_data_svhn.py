# SPDX-License-Identifier: Apache-2.0
"""The reader of SVHN's .mat files: values, and one line for each fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from scipy.io import savemat

from darts_fast.data import load_data


def content(n: int, seed: int) -> dict[str, Any]:
    """Laid out as distributed: image last, labels 1 to 10 in a column."""
    x = np.random.default_rng(seed).integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    return {"X": x, "y": (np.arange(n, dtype=np.uint8) % 10 + 1)[:, None]}


def write_svhn(folder: Path, *, compressed: bool = True) -> Path:
    for seed, (name, n) in enumerate((("train", 21), ("test", 12), ("extra", 30))):
        savemat(folder / f"{name}_32x32.mat", content(n, seed), do_compression=compressed)
    return folder


@pytest.mark.parametrize("compressed", [True, False])
def test_svhn(tmp_path: Path, compressed: bool) -> None:
    data = load_data(write_svhn(tmp_path, compressed=compressed))
    assert (data.name, data.num_classes, data.image_size) == ("svhn", 10, (32, 32))
    assert data.class_names == tuple("0123456789")
    assert (len(data.train), len(data.test)) == (21, 12)
    # Label 10 is the digit 0.
    assert data.train.labels.tolist() == [(i + 1) % 10 for i in range(21)]
    x = content(21, 0)["X"]
    assert torch.equal(data.train.images, torch.from_numpy(x.transpose(3, 2, 0, 1).copy()))
    assert data.mean == (0.4377, 0.4438, 0.4728)
    assert data.std == (0.1980, 0.2010, 0.1970)
    assert (data.augmentation.pad, data.augmentation.flip) == (4, True)
    assert len(load_data(tmp_path, limit=5, image_size=32).train) == 5


def test_extra_images_are_added_where_they_are_named(tmp_path: Path) -> None:
    data = load_data(write_svhn(tmp_path) / "extra_32x32.mat")
    assert (len(data.train), len(data.test)) == (51, 12)
    x = content(30, 2)["X"].transpose(3, 2, 0, 1)
    assert torch.equal(data.train.images[21:], torch.from_numpy(x.copy()))
    with refused("train_32x32.mat: a data file must be .npz or SVHN's extra_32x32.mat"):
        load_data(tmp_path / "train_32x32.mat")


@pytest.mark.parametrize("name", ["train_32x32.mat", "test_32x32.mat"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (write_svhn(tmp_path) / name).unlink()
    with refused(f"{tmp_path / name}: the file must exist, got none"):
        load_data(tmp_path)


def test_truncated_and_corrupt_files_are_named(tmp_path: Path) -> None:
    path = write_svhn(tmp_path) / "test_32x32.mat"
    whole = path.read_bytes()
    faults = [whole[:n] for n in (0, 1, 100, 128, 140, len(whole) // 2, len(whole) - 1)]
    for damaged in [*faults, b"MATLAB 5.0, or so it says" * 40, b"text"]:
        path.write_bytes(damaged)
        with refused(f"{path}: "):
            load_data(tmp_path)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no X": ({"X": None}, "must have an entry 'X', got ["),
    "no y": ({"y": None}, "must have an entry 'y', got ["),
    "float": (
        {"X": np.zeros((32, 32, 3, 4))},
        "X must be uint8 [32, 32, 3, n] with n > 0, got float64 [32, 32, 3, 4]",
    ),
    "grey": ({"X": np.zeros((32, 32, 4), np.uint8)}, "with n > 0, got uint8 [32, 32, 4]"),
    "small": ({"X": np.zeros((28, 28, 3, 4), np.uint8)}, "got uint8 [28, 28, 3, 4]"),
    "count": ({"y": np.ones((3, 1), np.uint8)}, "y must be integers [4, 1], got uint8 [3, 1]"),
    "real": ({"y": np.ones((4, 1))}, "y must be integers [4, 1], got float64 [4, 1]"),
    "zero": (
        {"y": np.array([[1], [10], [0], [2]])},
        "y must be from 1 to 10 (the digit 0), got 0 at image 2",
    ),
    "eleven": ({"y": np.array([[11], [1], [1], [1]])}, "got 11 at image 0"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_files(tmp_path: Path, fault: str) -> None:
    change, message = BAD[fault]
    path = write_svhn(tmp_path) / "train_32x32.mat"
    savemat(path, {k: v for k, v in {**content(4, 0), **change}.items() if v is not None})
    with refused(f"{path}: ", message):
        load_data(tmp_path)


def test_a_folder_with_two_sets_is_refused(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    (tmp_path / "train.npz").touch()
    with refused("must hold one data set, got .npz files and SVHN's .mat files; name one"):
        load_data(tmp_path)

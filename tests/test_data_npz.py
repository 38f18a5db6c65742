# SPDX-License-Identifier: Apache-2.0
"""The reader of .npz files and the embedded digits: values, and one clear line for each fault."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darts_fast.data import DataError, load_data
from darts_fast.data.readers.digits import load_digits
from darts_fast.data.splits import held_out_split


def one_line(error: pytest.ExceptionInfo[DataError], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def images(n: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, 16, 12, channels), dtype=np.uint8)


def test_npz_folder(tmp_path: Path) -> None:
    x, y = images(30), np.arange(30, dtype=np.int16) % 4
    np.savez(tmp_path / "train.npz", x=x, y=y)
    np.savez_compressed(tmp_path / "test.npz", x=x[:5], y=y[:5])
    data = load_data(tmp_path)
    assert (data.num_classes, data.image_size) == (4, (16, 12))
    assert torch.equal(data.train.images, torch.from_numpy(x).permute(0, 3, 1, 2))
    assert torch.equal(data.train.labels, torch.from_numpy(y).long())
    assert len(data.test) == 5
    assert data.mean == pytest.approx((x / 255).mean((0, 1, 2)), abs=1e-9)
    assert data.std == pytest.approx((x / 255).std((0, 1, 2)), abs=1e-9)
    assert (data.augmentation.pad, data.augmentation.flip) == (2, True)


def test_single_npz_is_split_in_each_class(tmp_path: Path) -> None:
    x, y = images(100, channels=1), np.arange(100) % 5
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    data = load_data(tmp_path / "mine.npz")
    assert data.name == "mine"
    assert torch.bincount(data.train.labels).tolist() == [16] * 5
    assert torch.bincount(data.test.labels).tolist() == [4] * 5
    everything = torch.cat([data.train.images, data.test.images])
    assert torch.equal(everything[:, 0], everything[:, 2])
    ours = sorted(everything[:, 0].flatten(1).tolist())
    assert ours == sorted(x.reshape(100, -1).tolist())
    again = load_data(str(tmp_path / "mine.npz"))
    assert torch.equal(again.test.images, data.test.images)


BAD_NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "float": ({"x": np.zeros((4, 8, 8, 3), np.float32)}, "x must be uint8, got float32"),
    "no channels": (
        {"x": np.zeros((4, 8, 8), np.uint8)},
        "x must be [n, H, W, 3 or 1], not empty, got [4, 8, 8]",
    ),
    "channels first": ({"x": np.zeros((4, 3, 8, 8), np.uint8)}, "not empty, got [4, 3, 8, 8]"),
    "empty": (
        {"x": np.zeros((0, 8, 8, 3), np.uint8), "y": np.zeros(0, np.int64)},
        "got [0, 8, 8, 3]",
    ),
    "no y": ({"y": None}, "must have an entry 'y', got ['x']"),
    "objects": (
        {"y": np.array([0, 1, None, 2], object)},
        "without pickled objects, got ValueError",
    ),
    "real labels": ({"y": np.zeros(4)}, "y must be integers [4], got float64 [4]"),
    "one-hot": ({"y": np.eye(4, dtype=int)}, "y must be integers [4], got int64 [4, 4]"),
    "count": ({"y": np.array([0, 1])}, "must have one label per image, got 2 for 4"),
    "negative": ({"y": np.array([0, 1, -1, 2])}, "y must be at least 0, got -1 at image 2"),
    "huge": (
        {"y": np.array([0, 1, 2**63, 3], np.uint64)},
        "largest label 9223372036854775808, got no image of 9223372036854775805 of them, the first "
        "is 2",
    ),
    "from one": (
        {"y": np.array([1, 2, 3, 3])},
        "y must use every class from 0 to its largest label 3, got no image of 1 of them, "
        "the first is 0",
    ),
}


@pytest.mark.parametrize("fault", BAD_NPZ)
def test_bad_npz(tmp_path: Path, fault: str) -> None:
    change, message = BAD_NPZ[fault]
    content = {"x": np.zeros((4, 8, 8, 3), np.uint8), "y": np.array([0, 1, 0, 1]), **change}
    np.savez(tmp_path / "train.npz", **{k: v for k, v in content.items() if v is not None})
    with pytest.raises(DataError) as error:
        load_data(tmp_path)
    one_line(error, f"{tmp_path / 'train.npz'}: ", message)


def test_faults_between_npz_files(tmp_path: Path) -> None:
    x = images(6)
    np.savez(tmp_path / "train.npz", x=x, y=np.arange(6) % 3)
    with pytest.raises(DataError) as error:
        load_data(tmp_path)
    one_line(error, f"{tmp_path / 'test.npz'}: the file must exist, got none")
    np.savez(tmp_path / "test.npz", x=x, y=np.arange(6))
    with pytest.raises(DataError) as error:
        load_data(tmp_path)
    one_line(error, f"{tmp_path / 'test.npz'}: y must be from 0 to 2, got 3 at image 3")
    np.savez(tmp_path / "test.npz", x=x[:, :8], y=np.arange(6) % 3)
    with pytest.raises(DataError) as error:
        load_data(tmp_path)
    one_line(error, "test.npz: images must have the size of train.npz, got [8, 12] for [16, 12]")
    np.savez(tmp_path / "tiny.npz", x=x[:2], y=np.arange(2))
    with pytest.raises(DataError) as error:
        load_data(tmp_path / "tiny.npz")
    one_line(error, "tiny.npz: a class must have at least 3 images to give one to the test, got 2")


def test_truncated_and_corrupt_npz_are_named(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez_compressed(path, x=images(20), y=np.arange(20) % 2)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[200:260] = bytes(60)
    faults = [whole[:n] for n in (0, 1, 50, len(whole) // 2, len(whole) - 1)]
    for content in [*faults, bytes(damaged), b"no archive at all", pickle.dumps({"x": 1})]:
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            load_data(path)
        one_line(error, f"{path}: the file must be a complete .npz")
    with path.open("wb") as file:
        np.save(file, images(3))
    with pytest.raises(DataError) as error:
        load_data(path)
    one_line(error, f"{path}: must be an archive of arrays x and y, got one array")


@pytest.mark.parametrize(("spec", "size"), [("digits", 8), ("digits16", 16)])
def test_digits(spec: str, size: int) -> None:
    data = load_data(spec)
    assert (data.name, data.num_classes, data.image_size) == (spec, 10, (size, size))
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])
    assert data.train.images.max() == 255
    augmentation = data.augmentation
    assert (augmentation.pad, augmentation.flip, augmentation.cutout) == (1, False, 0)
    # The share of every class is the same in the training set, the test set and a prefix.
    for labels in (data.test.labels, data.train.labels[:200], data.train.labels):
        share = torch.bincount(labels, minlength=10) / len(labels)
        assert (share - 0.1).abs().max() < 0.006
    # A linear least-squares classifier tells that labels and images belong together.
    x, y = (p.images[:, 0].flatten(1).double() / 255 for p in (data.train, data.test))
    x, y = (torch.cat([t, torch.ones(len(t), 1)], 1) for t in (x, y))
    target = torch.nn.functional.one_hot(data.train.labels, 10).double()
    ridge = x.T @ x + torch.eye(x.shape[1])
    guess = (y @ torch.linalg.solve(ridge, x.T @ target)).argmax(1)
    assert (guess == data.test.labels).double().mean() > 0.9


def test_digits_is_the_same_split_in_a_fresh_process() -> None:
    code = (
        "from darts_fast.data import load_data; d = load_data('digits');"
        "print(d.test.labels[:40].tolist(), int(d.test.images.long().sum()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    data = load_data("digits")
    assert run.stdout.strip() == f"{data.test.labels[:40].tolist()} {data.test.images.long().sum()}"
    with pytest.raises(ValueError, match="digits: size must be 8 or 16, got 32"):
        load_digits(32)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError) as error:
        load_data("digits")
    one_line(error, "digits: scikit-learn, which carries the images, must be installed, got: ")


def test_held_out_split_is_a_partition() -> None:
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 1)
    train, test = held_out_split(labels)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(16))
    assert torch.bincount(labels[test], minlength=3).tolist() == [2, 1, 0]

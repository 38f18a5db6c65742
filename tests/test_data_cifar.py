# SPDX-License-Identifier: Apache-2.0
"""The reader of CIFAR as distributed: values, harmlessness, and one clear line for each fault."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from darts_fast.data import DataError, load_data

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


class Python2Pickler(pickle._Pickler):
    """Writes bytes as the strings and flags as the integers of the distributed files' Python 2."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_string(self, text: bytes) -> None:
        self.write(b"T" + len(text).to_bytes(4, "little") + text)

    def save_flag(self, flag: bool) -> None:
        self.write(b"K" + bytes([flag]))

    dispatch[bytes] = save_string
    dispatch[bool] = save_flag


def write_pickle(path: Path, content: Any, *, python2: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if python2:
        stream = io.BytesIO()
        Python2Pickler(stream, protocol=2).dump(content)
        # The module of numpy 1.
        path.write_bytes(stream.getvalue().replace(b"cnumpy._core.multi", b"cnumpy.core.multi"))
    else:
        path.write_bytes(pickle.dumps(content, protocol=4))


def batch(n: int, first: int, *, key: bytes = b"labels", classes: int = 10) -> dict[bytes, Any]:
    """Image i of the batch is number first + i, which is its red value; green and blue follow."""
    number = np.arange(first, first + n)
    data = np.concatenate([np.repeat((number + c)[:, None], 1024, 1) for c in range(3)], 1)
    data[:, 33] = 200  # red, row 1, column 1
    return {b"data": data.astype(np.uint8), key: (number % classes).tolist(), b"filenames": []}


def write_cifar10(root: Path, *, python2: bool = True, per_file: int = 4) -> Path:
    folder = root / "cifar-10-batches-py"
    for i in range(5):
        write_pickle(folder / f"data_batch_{i + 1}", batch(per_file, i * per_file), python2=python2)
    write_pickle(folder / "test_batch", batch(6, 100), python2=python2)
    names = [f"class{i}".encode() for i in range(10)]
    write_pickle(folder / "batches.meta", {b"label_names": names}, python2=python2)
    return folder


def write_cifar100(root: Path) -> Path:
    folder = root / "cifar-100-python"
    write_pickle(folder / "train", batch(200, 0, key=b"fine_labels", classes=100))
    write_pickle(folder / "test", batch(30, 50, key=b"fine_labels", classes=100))
    write_pickle(folder / "meta", {b"fine_label_names": [b"fish"] * 100})
    return folder


def one_line(error: pytest.ExceptionInfo[DataError], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize("python2", [True, False])
@pytest.mark.parametrize("parent", [True, False])
def test_cifar10(tmp_path: Path, python2: bool, parent: bool) -> None:
    folder = write_cifar10(tmp_path, python2=python2)
    data = load_data(tmp_path if parent else folder)
    assert data.name == "cifar10"
    assert (len(data.train), len(data.test)) == (20, 6)
    assert data.class_names == tuple(f"class{i}" for i in range(10))
    assert (data.num_classes, data.image_size) == (10, (32, 32))
    assert data.train.labels.tolist() == [i % 10 for i in range(20)]
    assert data.test.labels.tolist() == [i % 10 for i in range(100, 106)]
    for channel in range(3):
        assert data.train.images[:, channel, 5, 7].tolist() == [i + channel for i in range(20)]
    assert data.train.images[:, 0, 1, 1].tolist() == [200] * 20
    assert data.mean == (0.49139968, 0.48215827, 0.44653124)
    assert data.std == (0.24703233, 0.24348505, 0.26158768)
    assert (data.augmentation.pad, data.augmentation.flip, data.augmentation.cutout) == (4, True, 0)
    assert not data.plain.random


def test_a_renamed_folder_is_recognised(tmp_path: Path) -> None:
    write_cifar10(tmp_path).rename(tmp_path / "images")
    assert load_data(str(tmp_path / "images")).name == "cifar10"


def test_cifar100(tmp_path: Path) -> None:
    folder = write_cifar100(tmp_path)
    for path in (tmp_path, folder):
        data = load_data(path)
        assert data.name == "cifar100"
        assert (len(data.train), len(data.test), data.num_classes) == (200, 30, 100)
        assert data.test.labels.tolist() == list(range(50, 80))
        assert data.mean == (0.5071, 0.4867, 0.4408)
        assert data.std == (0.2675, 0.2565, 0.2761)


def test_limit(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    data = load_data(tmp_path, limit=7)
    assert data.train.labels.tolist() == list(range(7))
    assert data.train.images[:, 0, 0, 0].tolist() == list(range(7))
    assert len(data.test) == 6
    assert len(load_data(tmp_path, limit=20).train) == 20
    for limit in (0, -3, 21):
        with pytest.raises(ValueError, match=rf"limit: must be from 1 to the 20 .* got {limit}"):
            load_data(tmp_path, limit=limit)


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


def test_a_malicious_file_runs_nothing(tmp_path: Path) -> None:
    folder, witness = write_cifar10(tmp_path), tmp_path / "witness"
    content = {**batch(4, 0), b"extra": Malicious(f"touch {witness}")}
    write_pickle(folder / "data_batch_3", content, python2=False)
    with pytest.raises(DataError) as error:
        load_data(tmp_path)
    one_line(error, "data_batch_3", "arrays of numbers only, got a reference to", "system")
    assert not witness.exists()
    # The attack is real: the ordinary reader runs it.
    with (folder / "data_batch_3").open("rb") as file:
        pickle.load(file)
    assert witness.exists()


@pytest.mark.parametrize(
    ("stream", "name"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"cnumpy.core.multiarray\nscalar\n.", "numpy.core.multiarray.scalar"),
        (b"c_codecs\nencode\n.", "_codecs.encode"),
        (b"cnumpy\ndtype\n(S'O'\nI0\nI1\ntR.", "dtype O"),
        (b"cnumpy\ndtype\n(S'u1,O'\nI0\nI1\ntR.", "dtype u1,O"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "posix.system"),
        (b"(S'ls'\nios\nsystem\n.", "os.system"),
    ],
)
def test_only_array_reconstruction_is_admitted(tmp_path: Path, stream: bytes, name: str) -> None:
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(stream)
    with pytest.raises(DataError) as error:
        load_data(tmp_path)
    one_line(error, "test_batch", f"got a reference to {name};")


@pytest.mark.parametrize(
    "name", ["data_batch_1", "data_batch_4", "test_batch", "batches.meta", "folder"]
)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_cifar10(tmp_path)
    if name == "folder":
        with pytest.raises(DataError) as error:
            load_data(tmp_path / "elsewhere")
        one_line(error, "elsewhere: data must be 'digits', 'digits16' or a path, got no such path")
        return
    (folder / name).unlink()
    with pytest.raises(DataError) as error:
        load_data(tmp_path)
    one_line(error, f"{folder / name}: the file must exist, got none")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").unlink()
    (folder / "test_batch").mkdir()
    with pytest.raises(DataError) as error:
        load_data(tmp_path)
    one_line(error, f"{folder / 'test_batch'}: the file must be readable, got Is a directory")


def test_numpy_reconstruction_is_never_reached(tmp_path: Path) -> None:
    # Flags of a dtype that say "objects" make numpy itself follow the bytes as pointers.
    folder = write_cifar10(tmp_path)
    plain = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    flags = b"(I3\nS'|'\nNNNI-1\nI-1\nI63\ntb"
    kind = b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR" + flags
    data = plain + b"(I1\n(I2\nI3072\nt" + kind + b"I00\nT" + (6144).to_bytes(4, "little")
    stream = b"(S'data'\n" + data + bytes(6144) + b"tbS'labels'\n(lI1\naI2\nad."
    (folder / "test_batch").write_bytes(stream)
    test = load_data(tmp_path).test
    assert test.labels.tolist() == [1, 2]
    assert int(test.images.sum()) == 0
    for old, new in ((b"S'|'", b"S'?'"), (b"I3072\nt", b"I3073\nt"), (kind, b"N")):
        assert old in stream
        (folder / "test_batch").write_bytes(stream.replace(old, new))
        with pytest.raises(DataError) as error:
            load_data(tmp_path)
        one_line(error, f"{folder / 'test_batch'}: the file must be a complete pickled batch")


def test_truncated_and_corrupt_batches_are_named(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    whole = (folder / "data_batch_2").read_bytes()
    generator = np.random.default_rng(0)
    faults = [whole[:n] for n in (0, 1, 20, len(whole) // 2, len(whole) - 1)]
    faults += [generator.bytes(500), b"\n" * 50, b"\x80\x04" + whole[:60] * 2, b"PK\x03\x04" * 20]
    for content in faults:
        (folder / "data_batch_2").write_bytes(content)
        with pytest.raises(DataError) as error:
            load_data(tmp_path)
        one_line(error, str(folder / "data_batch_2"))


BAD_BATCHES: dict[str, tuple[dict[bytes, Any], str]] = {
    "label too large": (
        {b"labels": [1, 2, 10, 3]},
        "labels must be from 0 to 9, got 10 at image 2",
    ),
    "label negative": ({b"labels": [1, 2, 3, -1]}, "labels must be from 0 to 9, got -1 at image 3"),
    "too few labels": ({b"labels": [1, 2, 3]}, "must have one label per image, got 3 for 4"),
    "text labels": ({b"labels": ["a", "b", "c", "d"]}, "labels must be integers [4], got <U1 [4]"),
    "real labels": ({b"labels": [0.5] * 4}, "labels must be integers [4], got float64 [4]"),
    "ragged labels": (
        {b"labels": [[1], [1, 2], [], []]},
        "must be integers [4], got a ragged list",
    ),
    "no labels": (
        {b"labels": None, b"delete": b"labels"},
        "must have an entry 'labels', got ['data",
    ),
    "no data": ({b"delete": b"data"}, "must have an entry 'data', got ['filenames', 'labels']"),
    "float data": (
        {b"data": np.zeros((4, 3072), np.float32)},
        "data must be a uint8 array, got float32 [4, 3072]",
    ),
    "list data": ({b"data": [[0] * 3072] * 4}, "data must be a uint8 array, got list"),
    "wrong width": (
        {b"data": np.zeros((4, 1024), np.uint8)},
        "data must be [n, 3072] with n > 0, got [4, 1024]",
    ),
    "no image": (
        {b"data": np.zeros((0, 3072), np.uint8), b"labels": []},
        "data must be [n, 3072] with n > 0, got [0, 3072]",
    ),
}


@pytest.mark.parametrize("fault", BAD_BATCHES)
def test_bad_batches(tmp_path: Path, fault: str) -> None:
    folder = write_cifar10(tmp_path)
    change, message = BAD_BATCHES[fault]
    content = {**batch(4, 0), **change}
    content.pop(content.pop(b"delete", None), None)
    write_pickle(folder / "data_batch_5", content, python2=False)
    with pytest.raises(DataError) as error:
        load_data(tmp_path)
    one_line(error, f"{folder / 'data_batch_5'}: ", message)


def test_bad_meta(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    for content, message in (
        ([1, 2], "must hold a dictionary, got list"),
        ({b"other": 1}, "must have an entry 'label_names', got ['other']"),
        ({b"label_names": 7}, "label_names must be a list of class names, got 7"),
    ):
        write_pickle(folder / "batches.meta", content)
        with pytest.raises(DataError) as error:
            load_data(tmp_path)
        one_line(error, f"{folder / 'batches.meta'}: {message}")


def test_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_data(tmp_path)
    one_line(error, f"{tmp_path}: must be or hold cifar-10-batches-py, cifar-100-python, train.npz")
    one_line(error, "or a folder of images per class, got none of them")
    (tmp_path / "x.png").touch()
    with pytest.raises(DataError) as error:
        load_data(tmp_path / "x.png")
    one_line(error, "x.png: a data file must be .npz or SVHN's extra_32x32.mat, got 'x.png'")
    write_cifar10(tmp_path)
    write_cifar100(tmp_path)
    with pytest.raises(DataError) as error:
        load_data(tmp_path)
    one_line(error, "one data set, got cifar-10-batches-py and cifar-100-python; name one")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data sets, absent here")
@pytest.mark.slow
def test_real_cifar10(tmp_path: Path) -> None:
    command = [sys.executable, str(SHARED / "unpack.py"), "cifar10", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    data = load_data(tmp_path)
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    assert torch.bincount(data.train.labels).tolist() == [5_000] * 10
    assert data.class_names[:3] == ("airplane", "automobile", "bird")
    pixels = data.train.images.permute(0, 2, 3, 1).reshape(-1, 3).double() / 255
    assert data.mean == pytest.approx(pixels.mean(0).tolist(), abs=1e-6)
    assert data.std == pytest.approx(pixels.std(0).tolist(), abs=1e-6)

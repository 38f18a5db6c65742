# SPDX-License-Identifier: Apache-2.0
"""Data set objects read into memory: the protocol, kinds of images, and one line for each fault."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from torch.utils.data import DataLoader, Subset, TensorDataset

from darts_fast.data import from_dataset, load_data

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


class Objects:
    """The least that is read: a length and pairs."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.labels[index]


class Named(Objects):
    """With torchvision's class names and file names."""

    classes = ("cat", "dog", "owl")

    @property
    def samples(self) -> list[tuple[str, int]]:
        return [(f"folder/{i}.png", label) for i, label in enumerate(self.labels)]


def pixels(n: int, height: int = 6, width: int = 7, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, height, width, 3), dtype=np.uint8)


LABELS = [0, 2, 1, 1, 0, 2, 0, 1, 2, 0, 1, 2]

# What an image of [H, W, 3] bytes may come as; all read to the same.
FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "pillow": Image.fromarray,
    "array": lambda x: x,
    "array, channels first": lambda x: x.transpose(2, 0, 1),
    "array, float32": lambda x: x.astype(np.float32) / 255,
    "array, float64": lambda x: x / 255,
    "tensor": lambda x: torch.from_numpy(x).permute(2, 0, 1),
    "tensor, channels last": torch.from_numpy,
    "tensor, float32": lambda x: torch.from_numpy(x).permute(2, 0, 1).float().div(255),
    "tensor with a gradient": lambda x: torch.from_numpy(x / 255).requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_reads_to_the_same(form: str) -> None:
    x = pixels(12)
    data = from_dataset(Objects([FORMS[form](image) for image in x], LABELS), Objects(x, LABELS))
    for part in (data.train, data.test):
        assert torch.equal(part.images, torch.from_numpy(x).permute(0, 3, 1, 2))
        assert part.labels.tolist() == LABELS
    assert (data.name, data.class_names, data.image_size) == ("Objects", ("0", "1", "2"), (6, 7))
    assert data.mean == pytest.approx((x / 255).mean((0, 1, 2)), abs=1e-12)
    assert data.std == pytest.approx((x / 255).std((0, 1, 2)), abs=1e-12)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: x[:, :, None],
        lambda x: torch.from_numpy(x),
        lambda x: torch.from_numpy(x)[None].float() / 255,
        Image.fromarray,
    ],
    ids=["[H, W]", "[H, W, 1]", "tensor [H, W]", "tensor [1, H, W]", "pillow"],
)
def test_grey_images_are_repeated(form: Callable[[np.ndarray], Any]) -> None:
    x = pixels(12)[..., 0]
    data = from_dataset(Objects([form(np.ascontiguousarray(image)) for image in x], LABELS))
    images = torch.cat([data.train.images, data.test.images])
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    assert sorted(images[:, 0].flatten(1).tolist()) == sorted(x.reshape(12, -1).tolist())


def test_where_channels_are_ambiguous_tensors_have_them_first_and_arrays_last() -> None:
    x = pixels(12, 3, 3)
    first = from_dataset(Objects(torch.from_numpy(x), LABELS), Objects(x, LABELS))
    assert torch.equal(first.train.images, torch.from_numpy(x))
    assert torch.equal(first.test.images, torch.from_numpy(x).permute(0, 3, 1, 2))


def test_torch_data_sets_are_read() -> None:
    x, y = torch.from_numpy(pixels(12)).permute(0, 3, 1, 2), torch.tensor(LABELS)
    whole = TensorDataset(x, y)
    data = from_dataset(whole, Subset(whole, [3, 1]), name="mine", class_names=["a", "b", "c"])
    assert (data.name, data.class_names) == ("mine", ("a", "b", "c"))
    assert torch.equal(data.train.images, x)
    assert torch.equal(data.test.images, x[[3, 1]])
    assert data.test.labels.tolist() == [1, 2]


def test_labels_may_be_numpy_or_torch_integers_and_classes_may_be_unused() -> None:
    x = pixels(6)
    labels = [np.int64(0), np.uint8(1), torch.tensor(0), torch.tensor([1]), 1, 0]
    data = from_dataset(Named(x, labels), Named(x, labels))
    assert data.train.labels.tolist() == [0, 1, 0, 1, 1, 0]
    assert data.class_names == ("cat", "dog", "owl")


def test_without_a_test_part_a_fifth_of_each_class_becomes_it() -> None:
    data = from_dataset(Named(pixels(30), [0, 1, 2] * 10))
    assert torch.bincount(data.train.labels).tolist() == [8, 8, 8]
    assert torch.bincount(data.test.labels).tolist() == [2, 2, 2]


def test_images_sorted_by_class_are_interleaved_and_others_stay() -> None:
    x = pixels(30)
    data = from_dataset(Named(x, [0] * 10 + [1] * 10 + [2] * 10), Named(pixels(12), LABELS))
    for prefix in (3, 9, 15):
        assert torch.bincount(data.train.labels[:prefix]).tolist() == [prefix // 3] * 3
    ours = data.train.images.permute(0, 2, 3, 1).flatten(1).tolist()
    assert sorted(ours) == sorted(x.reshape(30, -1).tolist())
    for row, label in zip(ours, data.train.labels.tolist(), strict=True):
        assert row in x[10 * label : 10 * label + 10].reshape(10, -1).tolist()
    assert data.test.labels.tolist() == LABELS
    kept = from_dataset(Named(x, [0, 1, 2] * 10), Named(x, [0, 1, 2] * 10))
    assert kept.train.images.permute(0, 2, 3, 1).flatten(1).tolist() == x.reshape(30, -1).tolist()


def test_sizes() -> None:
    mixed = [*pixels(6, 12, 12), *pixels(6, 9, 14)]
    data = from_dataset(Objects(mixed, LABELS), image_size=8)
    assert data.image_size == (8, 8)
    with refused(
        "Objects: training image 6: all images must have one size, got 9x14 where Objects: "
        "training image 0 has 12x12; image_size (--image_size) makes them equal"
    ):
        from_dataset(Objects(mixed, LABELS))
    with refused("Objects: test images must have the size of the training images, got 5x6 for 6x7"):
        from_dataset(Objects(pixels(12), LABELS), Objects(pixels(12, 5, 6), LABELS))
    with pytest.raises(ValueError, match="image_size: must be at least 1, got -1"):
        from_dataset(Objects(mixed, LABELS), image_size=-1)


# Faults

IMAGES: dict[str, tuple[Any, str]] = {
    "normalised": (
        np.linspace(-2, 2.5, 126).reshape(6, 7, 3),
        "float pixels must be from 0 to 1, got -2 to 2.5; the transform must not normalise",
    ),
    "not a number": (np.full((6, 7, 3), np.nan), "float pixels must be from 0 to 1, got nan"),
    "bytes as floats": (np.full((6, 7, 3), 255.0), "must be from 0 to 1, got 255 to 255"),
    "int64": (np.zeros((6, 7, 3), np.int64), "pixels must be uint8 or float, got int64"),
    "bool": (torch.zeros(3, 6, 7, dtype=torch.bool), "pixels must be uint8 or float, got bool"),
    "two channels": (
        np.zeros((6, 7, 2), np.uint8),
        "must be [H, W], [H, W, C] or [C, H, W] with C of 1 or 3, not empty, got [6, 7, 2]",
    ),
    "a batch": (torch.zeros(1, 3, 6, 7), "not empty, got [1, 3, 6, 7]"),
    "empty": (np.zeros((0, 7, 3), np.uint8), "not empty, got [0, 7, 3]"),
    "flat": (np.zeros(126, np.uint8), "not empty, got [126]"),
    "text": ("cat.png", "the image must be a Pillow image, an array or a tensor, got str"),
    "deep": (
        Image.fromarray(np.zeros((6, 7), np.float32)),
        "the image must have 8 bits per channel and a mode of 1, L, LA, P, ",
    ),
}


@pytest.mark.parametrize("fault", IMAGES)
def test_bad_images(fault: str) -> None:
    image, message = IMAGES[fault]
    images = [*pixels(3), image, *pixels(8)]
    with refused("Named: training image 3 (folder/3.png): ", message):
        from_dataset(Named(images, LABELS))
    with refused("Objects: test image 3: ", message):
        from_dataset(Objects(pixels(12), LABELS), Objects(images, LABELS))


SETS: dict[str, tuple[Any, str]] = {
    "real label": (
        Objects(pixels(3), [0, 1.5, 1]),
        "Objects: training image 1: its label must be an integer, got 1.5",
    ),
    "one-hot": (
        Objects(pixels(3), torch.eye(3)),
        "training image 0: its label must be an integer, got tensor([1., 0., 0.])",
    ),
    "text label": (Objects(pixels(2), ["cat", "dog"]), "must be an integer, got cat"),
    "too large": (
        Named(pixels(3), [0, 1, 3]),
        "Named: training labels must be from 0 to 2, got 3 at image 2",
    ),
    "negative": (
        Objects(pixels(3), [0, -1, 1]),
        "Objects: training labels must be at least 0, got -1 at image 1",
    ),
    "a gap": (
        Objects(pixels(3), [0, 1, 3]),
        "Objects: training labels must use every class from 0 to its largest label 3, got no image "
        "of 1 of them, the first is 2",
    ),
    "one class": (
        Objects(pixels(5), [0] * 5),
        "Objects: there must be at least 2 classes, got ['0']",
    ),
    "empty": (Objects([], []), "Objects: training images: there must be one at least"),
    "few": (Objects(pixels(4), [0, 1, 0, 1]), "a class must have at least 3 images to give one to"),
    "triples": (
        TensorDataset(torch.zeros(2, 3, 4, 4), torch.zeros(2), torch.zeros(2)),
        "TensorDataset: training image 0: must be a pair (image, label), got tuple of 3",
    ),
    "dictionaries": (
        [{"image": 1, "label": 0}],
        "list: training image 0: must be a pair (image, label), got dict",
    ),
    "missing": (
        Objects(pixels(3), [0, 1]),
        "training image 2: reading it failed with IndexError: list index out of range",
    ),
}


@pytest.mark.parametrize("fault", SETS)
def test_bad_data_sets(fault: str) -> None:
    dataset, message = SETS[fault]
    with refused(message):
        from_dataset(dataset)


def test_an_object_without_index_is_refused() -> None:
    loader = DataLoader(TensorDataset(torch.zeros(2, 3, 4, 4), torch.zeros(2)))
    with pytest.raises(TypeError, match=r"training images: .* length and an index, got DataLoader"):
        from_dataset(loader)  # type: ignore[arg-type]


def test_a_transform_that_draws_is_refused() -> None:
    class Flipping(Objects):
        draws = np.random.default_rng(0)

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            image, label = super().__getitem__(index)
            return (image[:, ::-1] if self.draws.random() < 0.5 else image), label

    with refused(
        "Flipping: training image ",
        "must be the same at every reading, got two different ones; the transform must not draw",
    ):
        from_dataset(Flipping(pixels(12), LABELS))


def test_an_error_of_the_object_is_the_cause(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")

    class Files(Named):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            return Image.open(tmp_path / "x.png") if index == 5 else self.images[index], 0

    with refused("Files: training image 5 (folder/5.png): reading it failed with Unidentified"):
        from_dataset(Files(pixels(12), LABELS))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data sets, absent here")
@pytest.mark.slow
def test_real_cifar10_reads_to_the_same_through_every_door(tmp_path: Path) -> None:
    unpack = [sys.executable, str(SHARED / "unpack.py")]
    subprocess.run([*unpack, "cifar10", str(tmp_path)], check=True, capture_output=True)
    ours = load_data(tmp_path / "cifar-10-batches-py")
    for form in (Image.fromarray, lambda x: torch.from_numpy(x).permute(2, 0, 1).float() / 255):
        train, test = (
            Objects(
                [form(x.permute(1, 2, 0).contiguous().numpy()) for x in part.images[:5000]],
                part.labels[:5000].tolist(),
            )
            for part in (ours.train, ours.test)
        )
        data = from_dataset(train, test, class_names=ours.class_names)
        assert torch.equal(data.train.images, ours.train.images[:5000])
        assert torch.equal(data.train.labels, ours.train.labels[:5000])
        assert torch.equal(data.test.images, ours.test.images[:5000])
    # As a folder of files: the first 40 images of every class, in an order of its own.
    command = [*unpack, "cifar10-folder", str(tmp_path / "files"), "--per-class", "40"]
    subprocess.run(command, check=True, capture_output=True)
    files = load_data(tmp_path / "files")
    assert files.class_names == tuple(sorted(ours.class_names)) == ours.class_names
    for label in range(10):
        expected = ours.train.images[ours.train.labels == label][:40].flatten(1).tolist()
        found = files.train.images[files.train.labels == label].flatten(1).tolist()
        assert sorted(found) == sorted(expected)

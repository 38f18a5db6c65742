# SPDX-License-Identifier: Apache-2.0
"""The reader of image folders: layouts, kinds and sizes of images, and one line for each fault."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import picture, write, write_classes
from PIL import Image
from refusals import refused

from darts_fast.data import load_data


def rows(images: torch.Tensor) -> list[list[int]]:
    return sorted(images.flatten(1).tolist())


# Layouts


@pytest.mark.parametrize("held", ["test", "val"])
def test_train_and_test(tmp_path: Path, held: str) -> None:
    write_classes(tmp_path / "train", {"cat": 5, "dog": 7})
    write_classes(tmp_path / held, {"cat": 2, "dog": 1})
    data = load_data(tmp_path)
    assert (data.name, data.class_names) == (tmp_path.name, ("cat", "dog"))
    assert (len(data.train), len(data.test), data.image_size) == (12, 3, (6, 6))
    for label, (first, count) in enumerate([(0, 5), (100, 7)]):
        ours = data.train.images[data.train.labels == label].permute(0, 2, 3, 1)
        theirs = np.stack([picture(first + i) for i in range(count)])
        assert rows(ours) == rows(torch.from_numpy(theirs))
    assert data.test.labels.tolist() == [0, 0, 1]
    assert torch.equal(data.test.images[2].permute(1, 2, 0), torch.from_numpy(picture(100)))


def test_statistics_are_those_of_numpy(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 5, "b": 4}, width=9)
    write_classes(tmp_path / "test", {"a": 2, "b": 2}, width=9)
    data = load_data(tmp_path)
    files = sorted(tmp_path.glob("train/*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]) / 255
    assert data.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-12)
    assert data.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-12)
    assert (data.augmentation.pad, data.augmentation.flip, data.augmentation.cutout) == (1, True, 0)


def test_test_wins_over_val(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("test", 1), ("val", 3)):
        write_classes(tmp_path / part, {"a": count, "b": count})
    assert len(load_data(tmp_path).test) == 2


def test_one_folder_per_class_is_split_the_same_way_every_time(tmp_path: Path) -> None:
    write_classes(tmp_path, {"x": 10, "y": 20, "z": 5})
    data = load_data(tmp_path)
    assert torch.bincount(data.train.labels).tolist() == [8, 16, 4]
    assert torch.bincount(data.test.labels).tolist() == [2, 4, 1]
    everything = torch.cat([data.train.images, data.test.images])
    theirs = np.stack([picture(100 * c + i) for c, n in enumerate((10, 20, 5)) for i in range(n)])
    assert rows(everything.permute(0, 2, 3, 1)) == rows(torch.from_numpy(theirs))
    again = load_data(str(tmp_path))
    assert torch.equal(again.train.images, data.train.images)
    assert torch.equal(again.test.labels, data.test.labels)


def test_every_prefix_is_a_fair_sample(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 20, "b": 20, "c": 10})
    write_classes(tmp_path / "test", {"a": 1, "b": 1, "c": 1})
    labels = load_data(tmp_path, limit=25).train.labels
    assert torch.bincount(labels).tolist() == [10, 10, 5]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_classes(tmp_path, {"car": 5, "test": 5, "train": 5})
    assert load_data(tmp_path).class_names == ("car", "test", "train")


def test_class_order_is_that_of_sorted_names_and_unicode_is_a_name(tmp_path: Path) -> None:
    names = ["zebra", "Ähre", "Zebra", "10", "9", "日本", "a b", "été"]
    write_classes(tmp_path / "train", dict.fromkeys(names, 1))
    write_classes(tmp_path / "test", dict.fromkeys(names[:3], 1))
    write(tmp_path / "train" / "été" / "naïve 画.png", picture(999))
    data = load_data(tmp_path)
    assert data.class_names == ("10", "9", "Zebra", "a b", "zebra", "Ähre", "été", "日本")
    assert torch.bincount(data.train.labels).tolist() == [1, 1, 1, 1, 1, 1, 2, 1]
    assert data.test.labels.tolist() == [2, 4, 5]


def test_hidden_files_and_folders_are_ignored_and_nested_ones_read(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5})
    write_classes(tmp_path, {".git": 1, "__MACOSX": 1})
    for name in (".DS_Store", "._000.png", "Thumbs.db", "desktop.ini"):
        (tmp_path / "a" / name).write_text("no image")
    write(tmp_path / "a" / ".thumbnails" / "x.png", picture(7))
    (tmp_path / "README.txt").write_text("beside the classes, not in one")
    write(tmp_path / "b" / "more" / "deep" / "x.PNG", picture(8))
    data = load_data(tmp_path)
    assert data.class_names == ("a", "b")
    both = torch.cat([data.train.labels, data.test.labels])
    assert torch.bincount(both).tolist() == [5, 6]


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    store = write_classes(tmp_path / "store", {"a": 5, "b": 5})
    root = tmp_path / "data"
    root.mkdir()
    (root / "a").symlink_to(store / "a")
    (root / "b").mkdir()
    for file in (store / "b").iterdir():
        (root / "b" / file.name).symlink_to(file)
    (root / "b" / "more").symlink_to(store / "a")
    assert len(load_data(root).train) == 12
    (root / "b" / "loop").symlink_to(root / "b")
    loop = root / "b" / "loop"
    with refused(f"{loop}: a class must have a folder once, got a link to {root / 'b'} again"):
        load_data(root)


def test_the_set_is_called_after_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_classes(tmp_path / "photos", {"a": 5, "b": 5}))
    assert load_data(".").name == "photos"


# Kinds of images


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    red = np.full((4, 4, 3), (200, 40, 90), np.uint8)
    rgb = Image.fromarray(red)
    palette = rgb.quantize(4)
    see_through = rgb.copy().quantize(4)
    see_through.info["transparency"] = bytes([0, 128, 255])
    alpha = Image.fromarray(np.dstack([red, np.full((4, 4), 7, np.uint8)]))
    grey = rgb.convert("L")
    kinds = {
        "rgb.png": rgb,
        "palette.png": palette,
        "palette-transparent.png": see_through,
        "rgba.png": alpha,
        "still.gif": palette,
        "cmyk.tif": rgb.convert("CMYK"),
        "rgb.webp": rgb,
        "rgb.bmp": rgb,
        "rgb.ppm": rgb,
        "grey.png": grey,
        "grey-alpha.png": grey.convert("LA"),
        "bits.png": grey.convert("1"),
    }
    for name, image in kinds.items():
        path = tmp_path / "train" / name.replace(".", "-") / name
        path.parent.mkdir(parents=True)
        image.save(path, lossless=True)
    shutil.copytree(tmp_path / "train" / "rgb-png", tmp_path / "test" / "rgb-png")
    data = load_data(tmp_path)
    for name, label in zip(data.class_names, range(data.num_classes), strict=True):
        ours = data.train.images[data.train.labels == label][0]
        if name in ("grey-png", "grey-alpha-png"):
            expected = torch.full((3,), int(np.asarray(grey)[0, 0]))
        elif name == "bits-png":
            assert set(ours.flatten().tolist()) <= {0, 255}
            assert torch.equal(ours[0], ours[2])
            continue
        else:
            expected = torch.tensor([200, 40, 90])
        # The colours of palettes and inks are rounded.
        assert (ours.int() - expected[:, None, None]).abs().max() <= 1, name


@pytest.mark.parametrize("quality", [None, 95])
def test_jpeg(tmp_path: Path, quality: int | None) -> None:
    for mode in ("RGB", "L", "CMYK"):
        for i in range(5):
            path = tmp_path / mode / f"{i}.jpeg"
            path.parent.mkdir(exist_ok=True)
            image = Image.fromarray(np.full((8, 8, 3), 20 * i + 60, np.uint8)).convert(mode)
            image.save(path, **({} if quality is None else {"quality": quality}))
    data = load_data(tmp_path)
    values = torch.cat([data.train.images, data.test.images]).float().mean((1, 2, 3))
    expected = torch.tensor(sorted([20.0 * i + 60 for i in range(5)] * 3))
    assert (values.sort().values - expected).abs().max() < 3


def test_photographs_are_turned_as_exif_says(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    for name in ("a", "b"):
        for i in range(4):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path, exif=exif)
    image = load_data(tmp_path).train.images[0, 0]
    assert image[:, 4:].min() == 255
    assert image[:, :4].max() == 0


def test_deep_images_are_refused_not_clipped(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4})
    path = tmp_path / "b" / "x.png"
    Image.fromarray(np.full((6, 6), 40_000, np.uint16)).save(path)
    with refused(f"{path}: the image must have 8 bits per channel", "got mode I"):
        load_data(tmp_path)


# Sizes


def test_image_size_resizes_the_centre_square(tmp_path: Path) -> None:
    wide, tall = picture(0, 20, 40), picture(1, 32, 16)
    # The short side becomes 8; what the long side has beyond that goes, half on each side.
    for label, (pixels, size, cut) in enumerate(
        [(tall, (8, 16), (0, 4, 8, 12)), (wide, (16, 8), (4, 0, 12, 8))]
    ):
        expected = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).crop(cut)
        ours = load_resized(tmp_path / f"{label}", pixels, 8)
        difference = ours.int() - torch.from_numpy(np.asarray(expected).copy()).int()
        assert difference.abs().max() <= 1  # Pillow's weights are fixed-point numbers


def test_an_odd_margin_is_cut_half_a_pixel_further(tmp_path: Path) -> None:
    steps = np.repeat(np.arange(9, dtype=np.uint8)[None, :, None] * 20, 8, 0)
    ours = load_resized(tmp_path, np.repeat(steps, 3, 2), 8)
    assert ours[0, :, 0].tolist() == [10 + 20 * i for i in range(8)]


def load_resized(root: Path, pixels: np.ndarray, size: int) -> torch.Tensor:
    for part in ("train", "test"):
        for name in ("a", "b"):
            write(root / part / name / "x.png", pixels)
    return load_data(root, image_size=size).test.images[0].permute(1, 2, 0)


def test_small_images_are_enlarged_and_large_ones_averaged(tmp_path: Path) -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    fine = np.repeat(board[:, :, None], 3, 2).astype(np.uint8)
    averaged = load_resized(tmp_path / "fine", fine, 8).int()
    assert (averaged - 127).abs().max() <= 2  # without antialiasing: 0 or 255
    enlarged = load_resized(tmp_path / "small", np.full((3, 5, 3), 77, np.uint8), 16)
    assert enlarged.unique().tolist() == [77]


def test_sizes_that_differ_need_image_size(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    write(tmp_path / "b" / "999.png", picture(5, 6, 9))
    with refused(
        f"{tmp_path / 'b' / '999.png'}: all images must have one size, got 6x9 where ",
        f"{tmp_path / 'a' / '000.png'} has 6x6; image_size (--image_size) makes them equal",
    ):
        load_data(tmp_path)
    assert load_data(tmp_path, image_size=4).image_size == (4, 4)
    with pytest.raises(ValueError, match="image_size: must be at least 1, got 0"):
        load_data(tmp_path, image_size=0)


def test_test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 3, "b": 3})
    write_classes(tmp_path / "test", {"a": 3, "b": 3}, height=8)
    with refused(f"{tmp_path}: test images must have the size of the training images, got 8x6"):
        load_data(tmp_path)


def test_image_size_is_for_image_files(tmp_path: Path) -> None:
    with refused("digits: image_size is for folders of image files, this set has 8x8, got 16"):
        load_data("digits", image_size=16)
    assert load_data("digits", image_size=8).image_size == (8, 8)


# Faults


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(3, 40, 40)).save(buffer, kind)
    return buffer.getvalue()


DAMAGED = {
    "text.png": b"This is a letter, not a picture.\n",
    "empty.png": b"",
    "zeros.png": bytes(500),
    "half.png": encoded("PNG")[: len(encoded("PNG")) // 2],
    "head.png": encoded("PNG")[:20],
    "half.jpg": encoded("JPEG")[: len(encoded("JPEG")) // 2],
    "head.jpg": encoded("JPEG")[:10],
    "half.gif": encoded("GIF")[: len(encoded("GIF")) // 2],
    "half.bmp": encoded("BMP")[: len(encoded("BMP")) // 2],
    "half.webp": encoded("WEBP")[: len(encoded("WEBP")) // 2],
    "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\nshowpage\n",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4}, height=40, width=40)
    path = tmp_path / "b" / name
    path.write_bytes(DAMAGED[name])
    with refused(f"{path}: the file must be "):
        load_data(tmp_path)
    path.unlink()
    assert len(load_data(tmp_path).train) == 6


def test_a_damaged_file_says_what_is_wrong(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4})
    path = tmp_path / "a" / "x.jpg"
    path.write_bytes(DAMAGED["text.png"])
    with refused(f"{path}: the file must be an image (PNG, JPEG, ", "got something else"):
        load_data(tmp_path)
    path.write_bytes(DAMAGED["half.jpg"])
    with refused(f"{path}: the file must be a complete image, got OSError: image file is truncat"):
        load_data(tmp_path)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4})
    for name in ("notes.txt", "photo.heic", "none"):
        path = tmp_path / "b" / name
        path.touch()
        with refused(f"{path}: a file in a class's folder must be an image (.png ", "got '"):
            load_data(tmp_path)
        path.unlink()


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4})
    closed = tmp_path / "b" / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path: str) -> object:  # the superuser, who may run this, is refused nothing
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with refused(f"{closed}: the folder must be readable, got Permission denied"):
        load_data(tmp_path)


@pytest.mark.parametrize("part", ["", "train", "test"])
def test_an_image_beside_the_classes_is_named(tmp_path: Path, part: str) -> None:
    for folder in [""] if not part else ["train", "test"]:
        write_classes(tmp_path / folder, {"a": 4, "b": 4})
    path = write(tmp_path / part / "loose.png", picture(1))
    with refused(f"{path}: an image must lie in the folder of a class, got it beside them"):
        load_data(tmp_path)


def test_classes_without_images_are_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "void").mkdir()
    with refused(f"{tmp_path}: every class must have an image, got none in 'void'"):
        load_data(tmp_path)
    for i in range(7):
        (tmp_path / f"e{i}").mkdir()
    with refused("got none in 'e0', 'e1', 'e2', 'e3', 'e4' and 3 more"):
        load_data(tmp_path)


def test_faults_of_the_layout(tmp_path: Path) -> None:
    one = write_classes(tmp_path / "one", {"a": 4})
    with refused(f"{one}: there must be a folder for each of 2 or more classes, got ['a']"):
        load_data(one)
    few = write_classes(tmp_path / "few", {"a": 2, "b": 2})
    with refused(f"{few}: a class must have at least 3 images to give one to the test, got 4 im"):
        load_data(few)
    alone = tmp_path / "alone"
    write_classes(alone / "train", {"a": 4, "b": 4})
    with refused(
        f"{alone}: beside train there must be a folder test or val, got 'train'; "
        f"{alone / 'train'} alone would be split 80/20"
    ):
        load_data(alone)
    assert len(load_data(alone / "train").test) == 2
    flat = write_classes(tmp_path / "flat", {"train": 4, "test": 4})
    with refused(f"{flat / 'train'}: there must be a folder for each of 2 or more classes, got []"):
        load_data(flat)
    other = tmp_path / "other"
    write_classes(other / "train", {"a": 4, "b": 4})
    write_classes(other / "test", {"a": 1, "c": 1})
    with refused(f"{other / 'test'}: its classes must be among those of train, got 'c' too"):
        load_data(other)
    shutil.rmtree(other / "test")
    (other / "test" / "a").mkdir(parents=True)
    with refused(f"{other / 'test'}: there must be an image in the folder of a class, got none"):
        load_data(other)

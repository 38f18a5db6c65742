# SPDX-License-Identifier: Apache-2.0
"""Data options of the commands: image folders, the stratified cut, and what is said of classes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from image_files import write_classes
from test_cli import contents, interrupt_after

from darts_fast.cli.analysed_run import open_analysed
from darts_fast.cli.options import read_data
from darts_fast.data import load_data, split

TINY = [
    *("--space", "nasbench201", "--init_channels", "4", "--layers", "1", "--batch_size", "8"),
    *("--epochs", "1", "--proj_intv", "1", "--threads", "1"),
]
IMBALANCED = (
    "warning: classes: 3, training images of each 3 to 16: imbalanced 5.3 to 1, fewest of 'owl', "
    "most of 'dog'"
)


def write_photos(root: Path = Path("photos")) -> Path:
    return write_classes(root, {"cat": 8, "dog": 20, "owl": 4}, height=12, width=10)


def test_a_search_of_image_files_with_a_stratified_cut(darts_fast: Run) -> None:
    write_photos()
    options = ("--data", "photos", "--image-size", "8", "--stratified", "--no-flip")
    arguments = ("search", *TINY, *options, "--save")
    status, out, err = darts_fast(*arguments, "whole")
    assert (status, err) == (0, "")
    assert out.splitlines().count(IMBALANCED) == 1
    assert Path("whole/log.txt").read_text().count(IMBALANCED) == 1
    config = json.loads(Path("whole/config.json").read_text())
    assert (config["stratified"], config["image_size"], config["flip"]) == (True, 8, False)
    # Stopped and gone on with, it ends in the same bits.
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 1, signal.SIGINT)
        assert darts_fast(*arguments, "run")[0] == 130
    status, _, err = darts_fast("search", "--resume", "--save", "run", "--no-stratified")
    assert status == 2
    assert "the run has stratified=True, which cannot become False" in err
    assert darts_fast("search", "--resume", "--save", "run")[0] == 0
    assert contents(Path("run")) == contents(Path("whole"))
    # Analyses score on the validation half of that cut.
    data = load_data("photos", image_size=8)
    _, valid = split(data.train, 0.5, stratified=True)
    found = torch.cat([labels for _, labels in open_analysed("run", None, None).batches])
    assert torch.equal(found, valid.labels)
    assert torch.bincount(found).tolist() == [3, 8, 2]


def test_the_cut_is_in_index_order_unless_told(darts_fast: Run) -> None:
    assert darts_fast("search", *TINY, "--limit", "32", "--save", "run")[0] == 0
    assert json.loads(Path("run/config.json").read_text())["stratified"] is False
    _, valid = split(load_data("digits", limit=32).train, 0.5)
    found = torch.cat([labels for _, labels in open_analysed("run", None, None).batches])
    assert torch.equal(found, valid.labels)


def test_a_run_saved_before_these_options_can_be_analysed(darts_fast: Run) -> None:
    assert darts_fast("search", *TINY, "--limit", "32", "--save", "run")[0] == 0
    path = Path("run/config.json")
    config = json.loads(path.read_text())
    for name in ("stratified", "image_size", "flip"):
        del config[name]
    path.write_text(json.dumps(config))
    assert len(open_analysed("run", None, None).data.train) == 32
    assert darts_fast("search", "--resume", "--save", "run")[0] == 0


def test_balanced_classes_are_one_line_of_the_log(darts_fast: Run) -> None:
    write_classes(Path("photos"), {"cat": 10, "dog": 10}, height=8, width=8)
    status, out, _ = darts_fast("search", *TINY, "--data", "photos", "--save", "run")
    assert status == 0
    log = Path("run/log.txt").read_text()
    assert log.count("classes: 2, training images of each 8 to 8\n") == 1
    assert "warning" not in log + out


def test_a_cut_that_leaves_a_class_out_is_warned_of(darts_fast: Run) -> None:
    x, y = np.zeros((40, 8, 8, 3), np.uint8), np.repeat([1, 0], 20)
    for name in ("train", "test"):
        np.savez(f"{name}.npz", x=x, y=y)
    _, out, _ = darts_fast("search", *TINY, "--data", ".", "--save", "run")
    warning = (
        "warning: the training half has no image of '0'; the validation half has no image of '1'; "
        "--stratified cuts each class alike"
    )
    assert warning in out
    assert warning in Path("run/log.txt").read_text()
    _, out, _ = darts_fast("search", *TINY, "--data", ".", "--save", "cut", "--stratified")
    assert "warning" not in out


def test_flips_are_those_of_the_set_unless_told() -> None:
    settings = {"data": "digits", "limit": None}
    assert not read_data(settings).augmentation.flip
    assert not read_data({**settings, "flip": None}).augmentation.flip
    told = read_data({**settings, "flip": True})
    assert told.augmentation.flip
    assert (told.mean, told.augmentation.pad) == (load_data("digits").mean, 1)


def test_doctor_describes_image_files(darts_fast: Run) -> None:
    write_photos()
    status, out, _ = darts_fast("doctor", "--data", "photos", "--image_size", "16")
    assert status == 0
    assert "photos: 25 + 7 images of 16x16, 3 classes" in out
    assert IMBALANCED.removeprefix("warning: ") in " ".join(out.split())  # the table wraps


def test_errors_of_image_files_are_one_line(darts_fast: Run) -> None:
    broken = write_photos() / "dog" / "x.png"
    broken.write_text("no picture")
    status, _, err = darts_fast("search", *TINY, "--data", "photos", "--image-size", "8")
    assert status == 2
    assert err.startswith(f"darts-fast: {broken}: the file must be an image (PNG, JPEG, ")
    assert err.count("\n") == 1
    assert not Path("runs").exists()
    broken.unlink()
    write_classes(Path("photos"), {"cat": 1}, height=9, width=9)
    status, _, err = darts_fast("search", *TINY, "--data", "photos")
    assert (status, err.count("\n")) == (2, 1)
    assert "image_size (--image_size) makes them equal" in err

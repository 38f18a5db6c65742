# SPDX-License-Identifier: Apache-2.0
"""Run directories: nothing is overwritten unasked, and no file is ever half written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from darts_fast.files import atomic_save, atomic_write
from darts_fast.runs import RunDirectory, RunDirectoryError


def test_a_new_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "a" / "b")
    assert run.path.is_dir()
    run.unlock()
    assert RunDirectory.create(run.path).path == run.path  # empty: nothing to lose


def test_a_directory_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"is not empty; pass --overwrite"):
        RunDirectory.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_overwriting_removes_the_earlier_run_and_nothing_else(tmp_path: Path) -> None:
    for name in (
        *("mine.txt", "log.txt", "checkpoint.pt", "checkpoint.previous.pt"),
        *("genotype.txt", "results.json", "config.json"),
    ):
        (tmp_path / name).write_text("old")
    RunDirectory.create(tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "mine.txt"]


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(RunDirectoryError, match="it is a file; name a directory"):
        RunDirectory.create(path, overwrite=True)


def test_fresh_directories_never_meet(tmp_path: Path) -> None:
    paths = [RunDirectory.fresh("search", tmp_path).path for _ in range(4)]
    assert len(set(paths)) == 4
    assert all(re.fullmatch(r"search-\d{8}-\d{6}(-\d)?", path.name) for path in paths)


def test_open_demands_a_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunDirectoryError, match=r"no config\.json in it"):
            RunDirectory.open(path)
    RunDirectory.create(tmp_path).write_json("config.json", {"epochs": 1})
    assert RunDirectory.open(tmp_path).read_json("config.json") == {"epochs": 1}


def test_log_lines_carry_the_originals_time_stamp(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path)
    run.log("epoch 0 lr 2.500000e-02")
    run.log("second")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert re.fullmatch(r"\d\d/\d\d \d\d:\d\d:\d\d [AP]M epoch 0 lr 2\.500000e-02", lines[0])
    assert len(lines) == 2


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "genotype.txt"
    atomic_write(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "new")
    with pytest.raises(OSError, match="No space left"):
        atomic_save(path, {"new": 1})
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["genotype.txt"]


def test_files_are_on_the_disk_before_they_are_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (calls.append("fsync"), fsync(d))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b))[1])
    RunDirectory.create(tmp_path).save_checkpoint({"step": 1})
    assert calls == ["fsync", "rename", "fsync"]


def test_checkpoints_come_back_as_plain_values(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path)
    assert not run.has_checkpoint()
    state = {"tensor": torch.arange(3), "nested": {"list": [1, 2.5, "x", None], 3: True}}
    run.save_checkpoint(state)
    loaded = run.load_checkpoint()
    assert torch.equal(loaded.pop("tensor"), state.pop("tensor"))
    assert loaded == state
    assert run.has_checkpoint()


class Unsafe:
    """Not a plain value."""


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"checkpoint\.pt: no such file"):
        run.load_checkpoint()
    run.save_checkpoint({"tensor": torch.zeros(1000)})
    data = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(RunDirectoryError, match=r"checkpoint\.pt: damaged or not a checkpoint"):
        run.load_checkpoint()
    run.save_checkpoint({"code": Unsafe()})
    with pytest.raises(RunDirectoryError, match=r"damaged or not a checkpoint"):
        run.load_checkpoint()


def test_broken_json_is_named(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"x\.json: no such file"):
        run.read_json("x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(RunDirectoryError, match=r"x\.json: not a JSON file"):
        run.read_json("x.json")

# SPDX-License-Identifier: Apache-2.0
"""Saved states: any changed byte is noticed, and a write that dies anywhere leaves a whole file."""

from __future__ import annotations

import builtins
import os
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from darts_fast.files import DamagedFileError, atomic_save, load_saved
from darts_fast.runs import RunDirectory, RunDirectoryError

STATE = {"weights": torch.arange(200.0), "epoch": 3, "names": ["a", None]}


def test_plain_torch_and_zip_tools_read_a_saved_state(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    atomic_save(path, STATE)
    for mmap in (False, True):
        state = torch.load(path, weights_only=True, mmap=mmap)
        assert torch.equal(state["weights"], STATE["weights"])
        assert state["names"] == STATE["names"]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert re.fullmatch(rb"darts_fast sha256 [0-9a-f]{64}", archive.comment)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    atomic_save(path, STATE)
    data = path.read_bytes()
    draws = random.Random(0)
    last = range(8 * len(data) - 8 * 110, 8 * len(data))  # end record and seal, every bit
    for bit in {*draws.sample(range(8 * len(data)), 700), *last}:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedFileError, match=re.escape(str(path))):
            load_saved(path)
    path.write_bytes(data)
    assert load_saved(path)["epoch"] == 3


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    atomic_save(path, STATE)
    data = path.read_bytes()
    for length in {*range(0, len(data), 13), *range(len(data) - 100, len(data))}:
        path.write_bytes(data[:length])
        with pytest.raises(DamagedFileError, match="cut short, or not saved by darts_fast"):
            load_saved(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(DamagedFileError, match="cut short, or not saved by darts_fast"):
        load_saved(path)


def test_what_others_saved_is_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pt")
    with pytest.raises(DamagedFileError, match=r"x\.pt: cut short, or not saved by darts_fast"):
        load_saved(tmp_path / "x.pt")


class Killed(BaseException):
    """The process is no more."""


class KilledAt:
    """Ends the writes of this process at its nth call of the operating system, for good."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("fsync", "replace", "unlink"):
            patch.setattr(os, name, self._counted(getattr(os, name)))
        patch.setattr(builtins, "open", self._counted(builtins.open, of_file=True))

    def _counted(self, call: Callable[..., Any], of_file: bool = False) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            if of_file and arguments[1:] != ("wb",):
                return call(*arguments, **keywords)
            self.left -= 1
            if self.left < 0:
                raise Killed
            result = call(*arguments, **keywords)
            if of_file:
                result.write = self._half(result)
            return result

        return counted

    def _half(self, file: Any) -> Callable[[bytes], int]:
        whole = type(file).write

        def write(data: bytes) -> int:
            self.left -= 1
            if self.left < 0:
                whole(file, data[: len(data) // 2])
                file.flush()
                raise Killed
            return int(whole(file, data))

        return write


@pytest.mark.parametrize("before", [1, 2, 3])
def test_a_kill_between_any_two_calls_leaves_a_whole_checkpoint(
    tmp_path: Path, before: int
) -> None:
    """What can be loaded is the state before the save or the one after it."""
    finished = died = 0
    for calls in range(12):
        run = RunDirectory(tmp_path / f"run{calls}")
        run.path.mkdir()
        for step in range(before):
            run.save_checkpoint({"step": step})
        with pytest.MonkeyPatch.context() as patch:
            KilledAt(calls).patch(patch)
            try:
                run.save_checkpoint({"step": before})
                finished += 1
            except Killed:
                died += 1
        later = RunDirectory(run.path)
        name = (
            "checkpoint.pt" if later.has_checkpoint("checkpoint.pt") else "checkpoint.previous.pt"
        )
        assert later.load_checkpoint(name)["step"] in (before - 1, before)
        for path in run.path.glob("checkpoint*"):
            load_saved(path)
        later.lock()
        assert not list(run.path.glob(".*.tmp"))
        later.save_checkpoint({"step": before + 1})
        assert later.load_checkpoint()["step"] == before + 1
        later.unlock()
    assert died >= 6
    assert finished >= 1


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    for step in range(4):
        run.save_checkpoint({"step": step})
    assert run.load_checkpoint() == {"step": 3}
    assert run.load_checkpoint("checkpoint.previous.pt") == {"step": 2}


def test_a_damaged_checkpoint_does_not_replace_the_previous_one(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    for step in range(2):
        run.save_checkpoint({"step": step})
    (run.path / "checkpoint.pt").write_bytes(b"damaged")
    later = RunDirectory(run.path)
    with pytest.raises(RunDirectoryError, match=r"checkpoint\.pt: damaged"):
        later.load_checkpoint()
    assert later.load_checkpoint("checkpoint.previous.pt") == {"step": 0}
    later.save_checkpoint({"step": 7})
    assert later.load_checkpoint("checkpoint.previous.pt") == {"step": 0}
    assert later.load_checkpoint() == {"step": 7}
    later.save_checkpoint({"step": 8})
    assert later.load_checkpoint("checkpoint.previous.pt") == {"step": 7}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.write_json("config.json", {})
    message = r"run directory .*run: another process is working on it"
    with pytest.raises(RunDirectoryError, match=message):
        RunDirectory.create(tmp_path / "run", overwrite=True)
    second = RunDirectory.open(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match=message):
        second.lock()
    assert (run.path / "config.json").exists()
    run.unlock()
    second.lock()
    second.unlock()

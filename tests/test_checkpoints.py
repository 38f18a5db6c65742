# SPDX-License-Identifier: Apache-2.0
"""What becomes of a run whose checkpoint, disk or process fails, and how it goes on."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from killed_runs import differences, left

from darts_fast.cli import main
from darts_fast.cli.console import RunReporter
from darts_fast.files import load_saved
from darts_fast.runs import RunDirectory

COMMON = ("--limit", "32", "--batch_size", "8", "--epochs", "2", "--threads", "1")
ARCH = "|nor_conv_1x1~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"
SMALL = ("--init_channels", "4", "--layers", "1")
COMMANDS = {
    "search": ("search", *COMMON, *SMALL, "--space", "nasbench201", "--proj_intv", "1"),
    "train": ("train", *COMMON, *SMALL, "--arch", ARCH),
}


class Finished:
    """A run that has ended, to be copied and damaged."""

    def __init__(self, command: str, path: Path) -> None:
        self.command = command
        self.arguments = COMMANDS[command]
        self.path = path
        with contextlib.redirect_stdout(None):
            assert main([*self.arguments, "--save", str(path)]) == 0
        self.left = left(path)

    def copy(self) -> Path:
        """A copy as ``run`` in the working directory."""
        return Path(shutil.copytree(self.path, "run"))

    @property
    def resume(self) -> tuple[str, ...]:
        return (self.command, "--resume", "--save", "run")


@pytest.fixture(scope="module", params=list(COMMANDS))
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(request.param, tmp_path_factory.mktemp("finished") / "run")


# What tests/test_cli.py has of searches.
ONLY_TRAIN = pytest.mark.parametrize("finished", ["train"], indirect=True)


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


def damage(path: Path) -> None:
    """Flip one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


class AtStep:
    """Does something when the reporter has counted so many steps, in this process."""

    def __init__(self, patch: pytest.MonkeyPatch, step: int, act: Any) -> None:
        advance = RunReporter.advance
        self.steps = 0

        def counted(reporter: RunReporter, accuracy: float | None = None) -> None:
            advance(reporter, accuracy)
            self.steps += 1
            if self.steps == step:
                act()

        patch.setattr(RunReporter, "advance", counted)


# Damaged checkpoints


def test_the_previous_checkpoint_is_offered_for_a_damaged_one(
    darts_fast: Run, finished: Finished
) -> None:
    run = finished.copy()
    damage(run / "checkpoint.pt")
    before = files(run)
    status, _, err = darts_fast(*finished.resume)
    offered = f"darts-fast {finished.command} --resume --previous --save run"
    assert (status, err) == (
        2,
        "darts-fast: checkpoint run/checkpoint.pt: damaged or not a checkpoint (its bytes do not "
        "have the SHA-256 they were saved with); checkpoint.previous.pt is whole, go on from it "
        f"with: {offered}\n",
    )
    assert files(run) == before
    status, _, err = darts_fast(*offered.split()[1:])
    assert (status, err) == (0, "")
    assert not differences(left(run), finished.left)
    load_saved(run / "checkpoint.previous.pt")


def test_a_run_without_a_whole_checkpoint_is_left_alone(
    darts_fast: Run, finished: Finished
) -> None:
    run = finished.copy()
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        damage(run / name)
    before = files(run)
    for flag, name, other in (
        ((), "checkpoint.pt", "checkpoint.previous.pt"),
        (("--previous",), "checkpoint.previous.pt", "checkpoint.pt"),
    ):
        status, _, err = darts_fast(*finished.resume, *flag)
        assert status == 2
        assert f"checkpoint run/{name}: damaged or not a checkpoint" in err
        assert err.endswith(f"; no whole {other} is there either\n")
    assert files(run) == before


def test_a_damaged_previous_checkpoint_points_to_the_last(
    darts_fast: Run, finished: Finished
) -> None:
    run = finished.copy()
    damage(run / "checkpoint.previous.pt")
    status, _, err = darts_fast(*finished.resume, "--previous")
    assert status == 2
    assert err.endswith(
        f"; checkpoint.pt is whole, go on from it with: darts-fast {finished.command} --resume "
        "--save run\n"
    )


def test_a_kill_between_the_two_renames_costs_nothing(darts_fast: Run, finished: Finished) -> None:
    run = finished.copy()
    (run / "checkpoint.pt").unlink()
    assert darts_fast(*finished.resume)[0] == 0
    assert not differences(left(run), finished.left)


def test_a_finished_run_without_checkpoints_is_not_begun_again(
    darts_fast: Run, finished: Finished
) -> None:
    run = finished.copy()
    for path in run.glob("checkpoint*"):
        path.unlink()
    before = files(run)
    status, _, err = darts_fast(*finished.resume)
    assert (status, err) == (2, "darts-fast: checkpoint run/checkpoint.pt: no such file\n")
    assert files(run) == before


def test_previous_belongs_to_resume(darts_fast: Run, finished: Finished) -> None:
    status, _, err = darts_fast(*finished.arguments, "--previous")
    assert (status, err) == (2, "darts-fast: --previous: belongs to --resume\n")


def test_a_checkpoint_of_another_run_is_refused(darts_fast: Run, finished: Finished) -> None:
    run = finished.copy()
    darts_fast(*finished.arguments, "--init_channels", "8", "--save", "other")
    shutil.copy("other/checkpoint.pt", run / "checkpoint.pt")
    status, _, err = darts_fast(*finished.resume)
    assert status == 2
    assert "does not belong to this run (Error(s) in loading state_dict for " in err


# The disk


def test_a_full_disk_leaves_the_last_checkpoint(darts_fast: Run, finished: Finished) -> None:
    """A limit on the size of files stands for the disk: the kernel refuses to write on."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept: dict[str, bytes] = {}

    def fill() -> None:
        kept.update(files(Path("run")))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    with pytest.MonkeyPatch.context() as patch:
        AtStep(patch, 3, fill)
        try:
            status, _, err = darts_fast(
                *finished.arguments, "--save_every", "0.000001", "--save", "run"
            )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2
    assert err == (
        "darts-fast: [Errno 27] File too large: 'run/checkpoint.pt'; no file was overwritten, once "
        f"this is mended go on with: darts-fast {finished.command} --resume --save run\n"
    )
    now = files(Path("run"))
    assert now.keys() == kept.keys()
    changed = {name for name in kept if now[name] != kept[name]}
    assert changed <= {"log.txt", "history.jsonl", "status.json"}
    assert now["history.jsonl"].startswith(kept["history.jsonl"])
    assert darts_fast(*finished.resume, "--save_every", "600")[0] == 0
    assert not differences({**left(Path("run")), "config": 0}, {**finished.left, "config": 0})


def test_a_log_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.create(tmp_path / "run")
    (run.path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*/run/log\.txt'"):
        run.log("line")


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Permissions do not bind the superuser."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_directory_that_is_read_only_is_named(darts_fast: Run, finished: Finished) -> None:
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        run = shutil.copytree(finished.path, Path(root) / "run")
        os.chmod(run, 0o555)
        (run / ".lock").unlink()
        before = files(run)
        with without_privileges():
            status, _, err = darts_fast(finished.command, "--resume", "--save", str(run))
            assert status == 2
            assert err.startswith(f"darts-fast: run directory {run}: cannot be written to (")
            assert "Permission denied" in err
            status, _, err = darts_fast(*finished.arguments, "--save", f"{run}/new")
            assert status == 2
            assert f"Permission denied: '{run}/new'" in err
        assert files(run) == before
        os.chmod(run, 0o755)


# Two processes


def test_a_second_process_is_refused(darts_fast: Run, finished: Finished) -> None:
    run = finished.copy()
    before = files(run)
    other = RunDirectory.open(run)
    other.lock()
    for command in (finished.resume, (*finished.arguments, "--overwrite", "--save", "run")):
        status, _, err = darts_fast(*command)
        assert (status, err) == (
            2,
            "darts-fast: run directory run: another process is working on it\n",
        )
    assert files(run) == before
    other.unlock()
    assert darts_fast(*finished.resume)[0] == 0
    other.lock()  # the command has let go of it
    other.unlock()


# Saving and stopping


def test_a_signal_asks_for_a_checkpoint_inside_an_epoch(
    darts_fast: Run, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = RunDirectory.save_checkpoint
    at = AtStep(monkeypatch, 1, lambda: signal.raise_signal(signal.SIGUSR1))

    def counted(self: RunDirectory, state: Any) -> Path:
        saved.append(at.steps)
        return save(self, state)

    monkeypatch.setattr(RunDirectory, "save_checkpoint", counted)
    darts_fast(*finished.arguments, "--save_every", "0", "--save", "run")
    assert 1 in saved
    assert not differences({**left(Path("run")), "config": 0}, {**finished.left, "config": 0})
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    at.steps, saved[:] = 100, []
    darts_fast(*finished.arguments, "--save_every", "0.000001", "--save", "often")
    assert {101, 102, 103} <= {*saved}
    assert not differences({**left(Path("often")), "config": 0}, {**finished.left, "config": 0})


@ONLY_TRAIN
@pytest.mark.parametrize(
    ("step", "signum"), [(1, signal.SIGTERM), (2, signal.SIGINT), (6, signal.SIGTERM)]
)
def test_an_interrupted_training_goes_on_to_the_same_bits(
    darts_fast: Run, finished: Finished, step: int, signum: signal.Signals
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        AtStep(patch, step, lambda: signal.raise_signal(signum))
        status, _, err = darts_fast(*finished.arguments, "--save", "my run")
    assert status == 128 + signum
    assert err.splitlines()[-1] == (
        f"darts-fast: stopped by {signum.name} in phase train given after {step} of 8 steps; go on "
        "with: darts-fast train --resume --save 'my run'"
    )
    assert not Path("my run/results.json").exists()
    status, _, err = darts_fast("train", "--resume", "--save", "my run")
    assert (status, err) == (0, "")
    assert not differences(left(Path("my run")), finished.left)


@ONLY_TRAIN
def test_a_training_goes_on_with_its_own_settings(darts_fast: Run, finished: Finished) -> None:
    finished.copy()
    status, _, err = darts_fast(*finished.resume, "--arch", "DARTS_V2")
    assert status == 2
    assert f"--resume: the run has arch={ARCH}, which cannot become DARTS_V2" in err
    status, out, _ = darts_fast(*finished.resume, "--threads", "2")
    assert status == 0
    assert "warning: threads of the run was 1 and is now 2; rounding may differ" in out


def test_a_diverging_run_keeps_its_checkpoint(darts_fast: Run, finished: Finished) -> None:
    status, _, err = darts_fast(
        *(*finished.arguments, "--learning_rate", "1e38", "--save", "run"),
        *("--epochs", "3", "--save_every", "0.000001"),
    )
    assert status == 1
    assert "must be finite, got " in err
    assert "; first in " in err
    assert err.endswith("; kept: run/checkpoint.pt\n")
    state = load_saved("run/checkpoint.pt")["state"]
    weights = state["search"]["net"]["state_dict"] if "search" in state else state["net"]
    assert all(weight.isfinite().all() for weight in weights.values())

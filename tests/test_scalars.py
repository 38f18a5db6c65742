# SPDX-License-Identifier: Apache-2.0
"""Scalars for TensorBoard: tags, values, what a resume does, and what is said without a writer."""

from __future__ import annotations

import importlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Run as Call
from test_cli import TINY, TINY_DERIVE, interrupt_after

from darts_fast.cli.scalars import Scalars


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag, as TensorBoard shows them."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reading.EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_the_tags_are_those_of_the_originals(darts_fast: Call) -> None:
    pytest.importorskip("tensorboard")
    arguments = ("search", *TINY, *TINY_DERIVE, "--epochs", "2", "--tensorboard", "--save", "run")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 2, signal.SIGINT)
        assert darts_fast(*arguments)[0] == 130
    status, _, err = darts_fast("search", "--resume", "--save", "run")
    assert (status, err) == (0, "")
    folder = Path("run/tensorboard")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("search", "train-magnitude", "train-perturbation", "train-random", "tune")
    ]
    history = json.loads(Path("run/results.json").read_text())
    found = scalars(folder / "search")
    assert set(found) == {"Acc/train", "Obj/train", "Acc/valid", "Obj/valid"}
    assert [step for step, _ in found["Acc/train"]] == [0, 1]
    for step, value in found["Acc/valid"]:
        assert value == pytest.approx(history["history"][step]["valid_acc"], rel=1e-5)
    derived = scalars(folder / "train-random")
    assert set(derived) == {"Acc/train", "Obj/train", "Acc/test", "Obj/test"}
    assert derived["Acc/test"][-1][1] == pytest.approx(
        history["derived"][2]["test_accuracy"], rel=1e-5
    )
    assert set(scalars(folder / "tune")) == {"Acc/train", "Obj/train"}


def test_an_epoch_done_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")

    def write(epochs: range, loss: float, *, resumed: bool) -> None:
        writer = Scalars(tmp_path, resumed=resumed)
        for epoch in epochs:
            event = {"event": "epoch", "phase": "search", "epoch": epoch, "train_loss": loss}
            writer.write(event)
        writer.write({"event": "phase", "phase": "search"})
        writer.close()

    write(range(4), 2.0, resumed=False)
    write(range(2, 5), 1.0, resumed=True)
    found = scalars(tmp_path / "tensorboard" / "search")
    assert found == {"Obj/train": [(0, 2.0), (1, 2.0), (2, 1.0), (3, 1.0), (4, 1.0)]}
    write(range(1), 3.0, resumed=False)
    assert scalars(tmp_path / "tensorboard" / "search") == {"Obj/train": [(0, 3.0)]}


def test_without_a_writer_nothing_is_begun(
    darts_fast: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name in ("torch.utils.tensorboard", "tensorboardX"):
            raise ImportError(name)
        return load(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    for command in (("search", *TINY), ("train", "--arch", "DARTS")):
        status, _, err = darts_fast(*command, "--tensorboard", "--save", "run")
        assert status == 2
        assert err == (
            "darts-fast: --tensorboard: needs the package tensorboard or tensorboardX; "
            "pip install 'darts-fast[tensorboard]'\n"
        )
    assert not Path("run").exists()

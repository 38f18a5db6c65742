# SPDX-License-Identifier: Apache-2.0
"""Scalars for TensorBoard, with the tags of the DARTS-PT code, where a writer is installed."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "Scalars", "check_scalars"]

FOLDER = "tensorboard"
_WRITERS = ("torch.utils.tensorboard", "tensorboardX")


def _summary_writer() -> Any:
    """The class ``SummaryWriter`` of torch (with package tensorboard), else of tensorboardX.

    Raises:
        ValueError: neither can be imported.
    """
    for name in _WRITERS:
        try:
            return importlib.import_module(name).SummaryWriter
        except ImportError:
            continue
    raise ValueError(
        "--tensorboard: needs the package tensorboard or tensorboardX; "
        "pip install 'darts-fast[tensorboard]'"
    )


def check_scalars(settings: Mapping[str, Any]) -> None:
    """Raise ValueError if scalars are asked for and nothing can write them."""
    if settings["tensorboard"]:
        _summary_writer()


class Scalars:
    """Writes the epochs of a run's history to ``tensorboard/PHASE`` of its directory.

    ``Acc/train``, ``Obj/train`` (percent and nats, over the epoch's training images), and
    ``Acc/valid``, ``Obj/valid`` of the supernet or ``Acc/test``, ``Obj/test`` of a network trained
    from scratch; the step is the epoch, from 0. An epoch that is done again after a resume takes
    the place of the earlier one.

    Args:
        run: the run's directory.
        resumed: False removes what an earlier run has left.
    """

    def __init__(self, run: Path, *, resumed: bool) -> None:
        self.folder = run / FOLDER
        self._writer = _summary_writer()
        self._open: dict[str, Any] = {}
        if not resumed:
            shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, event: Mapping[str, Any]) -> None:
        """The scalars of one ``epoch`` event; other events have none."""
        if event["event"] != "epoch":
            return
        phase, epoch = str(event["phase"]), int(event["epoch"])
        if phase not in self._open:
            path = self.folder / phase.replace(" ", "-")
            # What an interrupted process wrote from this epoch on is not shown.
            self._open[phase] = self._writer(str(path), purge_step=epoch)
        held_out = "test" if phase.startswith("train ") else "valid"
        for field, tag in (("train", "train"), ("valid", held_out)):
            for key, name in (("acc", "Acc"), ("loss", "Obj")):
                value = event.get(f"{field}_{key}")
                if value is not None:
                    self._open[phase].add_scalar(f"{name}/{tag}", value, epoch)
        self._open[phase].flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self._open.values():
            writer.close()
        self._open.clear()

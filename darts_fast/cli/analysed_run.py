# SPDX-License-Identifier: Apache-2.0
"""What the analyses share: options, the run, its supernets and images, where results go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from darts_fast.cli.options import debug_option, read_data, set_threads, with_options
from darts_fast.cli.pipeline import SUPERNET
from darts_fast.data import Dataset, fixed_batches, split
from darts_fast.nn import Supernet
from darts_fast.runs import CONFIG, RunDirectory, RunDirectoryError
from darts_fast.search import SearchConfig
from darts_fast.selection.tables import Batch
from darts_fast.spaces import get_space

__all__ = [
    "AnalysedRun",
    "analysis_options",
    "chosen_epoch",
    "epoch_option",
    "open_analysed",
    "results_directory",
]


@dataclass(frozen=True)
class AnalysedRun:
    """A search's directory with what an analysis needs of it.

    Attributes:
        epochs: of the supernets kept.
        batches: of the validation half.
    """

    path: Path
    settings: dict[str, Any]
    data: Dataset
    epochs: list[int]
    batches: list[Batch]

    def supernet(self, epoch: int) -> Supernet:
        """The supernet after so many epochs."""
        net = SearchConfig.from_mapping(self.settings).build_supernet(
            get_space(self.settings["space"]),
            channels=self.settings["init_channels"],
            num_classes=self.data.num_classes,
            layers=self.settings["layers"],
        )
        state = RunDirectory(self.path).load_checkpoint(SUPERNET.format(epoch=epoch))
        net.load_full_state_dict(state)
        return net

    @property
    def title(self) -> str:
        s = self.settings
        return f"{s['space']} on {self.data.name}, {s['method']}, seed {s['seed']}"


def open_analysed(run_dir: str, images: int | None, threads: int | None) -> AnalysedRun:
    """The run in a directory, with the first `images` images to score on.

    Raises:
        RunDirectoryError: it is not of a search, or has kept no supernet.
    """
    set_threads(threads)
    run = RunDirectory.open(run_dir)
    settings = run.read_json(CONFIG)
    if settings.get("command") != "search":
        raise RunDirectoryError(f"run directory {run.path}: must be of a search, not of another")
    prefix, suffix = SUPERNET.split("{epoch:03d}")
    found = sorted(
        int(path.name[len(prefix) : -len(suffix)])
        for path in run.path.glob(f"{prefix}*{suffix}")
        if path.name[len(prefix) : -len(suffix)].isdigit()
    )
    if not found:
        raise RunDirectoryError(
            f"run directory {run.path}: no {prefix}*{suffix} in it; its search has not ended, or "
            "was made before supernets were kept"
        )
    data = read_data(settings)
    _, pool = split(
        data.train, settings["train_portion"], stratified=settings.get("stratified", False)
    )
    pool = pool.take(min(images or len(pool), len(pool)))
    batches = fixed_batches(pool, data.plain, settings["batch_size"])
    return AnalysedRun(run.path, settings, data, found, batches)


def analysis_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``RUN_DIR --images --out --threads --debug``."""
    options = (
        click.argument("run_dir"),
        click.option(
            "--images",
            type=click.IntRange(min=1),
            help="Use the first N validation images only.  [default: all]",
        ),
        click.option(
            "--out", metavar="DIR", help="For picture and numbers.  [default: RUN_DIR/analysis]"
        ),
        click.option("--threads", type=click.IntRange(min=1), help="[default: torch's]"),
        debug_option,
    )
    return with_options(*options)(command)


epoch_option = click.option(
    "--epoch", type=click.IntRange(min=1), help="Of the supernet.  [default: the last one kept]"
)


def chosen_epoch(run: AnalysedRun, epoch: int | None) -> int:
    """The epoch asked for, or the last one kept; ValueError for one that was not."""
    if epoch is not None and epoch not in run.epochs:
        raise ValueError(f"--epoch: the run has kept {run.epochs}, got {epoch}")
    return run.epochs[-1] if epoch is None else epoch


def results_directory(run: AnalysedRun, out: str | None) -> RunDirectory:
    """Where picture and numbers go."""
    directory = RunDirectory(out or run.path / "analysis")
    directory.path.mkdir(parents=True, exist_ok=True)
    return directory

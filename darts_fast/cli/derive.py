# SPDX-License-Identifier: Apache-2.0
"""Training of found networks for ``search --derive`` and ``train``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from darts_fast.cli.checkpoints import of_this_run
from darts_fast.cli.console import RunReporter
from darts_fast.data import Dataset
from darts_fast.derive import build_derived
from darts_fast.derive.record import EpochEvents
from darts_fast.derive.saved import SavedNetwork
from darts_fast.derive.train import NetworkTraining, TrainConfig, TrainProgress
from darts_fast.reporter import save_or_stop
from darts_fast.runs import RunDirectory
from darts_fast.search import genotype_text
from darts_fast.seeding import seed_everything
from darts_fast.spaces import Genotype

__all__ = ["NETWORK", "check_derived", "train_derived"]

NETWORK = "network-{label}.pt"


def check_derived(
    genotype: Genotype | str, data: Dataset, *, channels: int, layers: int, auxiliary: bool
) -> None:
    """Build the network and pass two images through it, so that what cannot work fails before hours
    of search.

    Raises:
        ValueError: the sizes make no network or do not suit the images.
    """
    with torch.random.fork_rng(devices=[]):
        net = build_derived(
            genotype,
            channels=channels,
            num_classes=data.num_classes,
            layers=layers,
            auxiliary=auxiliary,
        )
    net.eval()
    with torch.no_grad():
        try:
            net(torch.zeros(2, 3, *data.image_size))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"derived network: {layers} layers must suit images of "
                f"{data.image_size[0]}x{data.image_size[1]}, got: {reason}"
            ) from None


def train_derived(
    label: str,
    genotype: Genotype | str,
    data: Dataset,
    config: TrainConfig,
    reporter: RunReporter,
    run: RunDirectory,
    *,
    channels: int,
    layers: int,
    auxiliary: bool,
    checkpoint: Callable[[dict[str, Any]], None],
    state: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train one network from scratch; it goes to ``network-LABEL.pt`` in the run directory.

    Every call with the same seed starts from the same random state, so networks of different
    genotypes get equal treatment, and the same genotype the same network.

    Args:
        checkpoint: takes the state after each epoch, when the reporter wants it saved, and before
            stopping.
        state: one that `checkpoint` got, to go on from.

    Returns:
        A row for the table and the result file: label, genotype, accuracies in percent, parameters,
        seconds.

    Raises:
        Interrupted: the reporter asked to stop, and the state is with `checkpoint`.
        NonFiniteLossError: the training diverged.
        RunDirectoryError: the state is of another training.
    """
    seed_everything(config.seed)
    net = build_derived(
        genotype,
        channels=channels,
        num_classes=data.num_classes,
        layers=layers,
        auxiliary=auxiliary,
    )
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = sum(parameter.numel() for parameter in net.parameters())
    reporter.log(f"derived network of {label}: {genotype_text(genotype)}")
    reporter.log(f"param size = {parameters / 1e6:f}MB")
    phase = f"train {label}"

    def save() -> None:
        checkpoint(training.state_dict())

    def progress(step: TrainProgress) -> None:
        reporter.advance(step.accuracy)
        save_or_stop(reporter, save)

    def epoch_done() -> None:
        reporter.record(event_of(training.history[-1]))
        save()

    training = NetworkTraining(
        net, data, config, progress=progress, log=reporter.log, checkpoint=epoch_done
    )
    if state is not None:
        with of_this_run(f"run directory {run.path}: the state of {phase}"):
            training.load_state_dict(state)
    steps = training.epoch_steps
    event_of = EpochEvents(phase, config.epochs, steps)
    reporter.start(phase, config.epochs * steps, training.epoch * steps + training.step)
    result = training.run()
    reporter.finish()
    path = run.path / NETWORK.format(label=label)
    SavedNetwork(
        genotype=genotype_text(genotype),
        channels=channels,
        layers=layers,
        num_classes=data.num_classes,
        auxiliary=auxiliary,
        mean=list(data.mean),
        std=list(data.std),
        class_names=list(data.class_names),
        state_dict=net.state_dict(),
        image_size=list(data.image_size),
    ).save(path)
    return {
        "selection": label,
        "genotype": genotype_text(genotype),
        "test_accuracy": result.test_accuracy,
        "best_test_accuracy": result.best_test_accuracy,
        "parameters": parameters,
        "seconds": reporter.seconds[phase],
        "network": Path(path).name,
        "history": [asdict(epoch) for epoch in result.history],
    }

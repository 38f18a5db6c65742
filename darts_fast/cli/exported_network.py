# SPDX-License-Identifier: Apache-2.0
"""Where the network that is to be exported comes from: a run, a file of one, or loose weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from darts_fast.cli.architecture import read_architecture
from darts_fast.cli.derive import NETWORK
from darts_fast.derive import build_derived
from darts_fast.derive.saved import SavedNetwork, load_weights
from darts_fast.files import DamagedFileError
from darts_fast.runs import CONFIG, RunDirectoryError
from darts_fast.search import genotype_text

__all__ = ["network_of_arch", "network_of_file", "network_of_run"]


def network_of_run(run: Path, label: str | None) -> SavedNetwork:
    """The network of that label; by default the only one, or that of the run's selection.

    Raises:
        RunDirectoryError: the run has none, has several and none is the selected, or lacks it.
    """
    if not run.is_dir():
        raise RunDirectoryError(f"export: no such directory: {run}")
    before, after = NETWORK.split("{label}")
    labels = sorted(
        path.name.removeprefix(before).removesuffix(after)
        for path in run.glob(NETWORK.format(label="*"))
    )
    if not labels:
        raise RunDirectoryError(
            f"export: no trained network in {run}; train what it found with: "
            f"darts-fast train --arch {run}"
        )
    if label is None and len(labels) == 1:
        label = labels[0]
    if label is None:
        label = _selected(run)
    if label not in labels:
        raise RunDirectoryError(
            f"export: --network must be one of {', '.join(labels)}, got {label}"
        )
    return network_of_file(run / NETWORK.format(label=label))


def _selected(run: Path) -> str | None:
    """The label of the run's selection, as far as it is known."""
    try:
        found = json.loads((run / CONFIG).read_text(encoding="utf-8")).get("select")
    except (OSError, ValueError, AttributeError):
        return None
    return None if found is None else str(found)


def network_of_file(path: Path) -> SavedNetwork:
    """A network that darts_fast has saved.

    Raises:
        ValueError: the file is not one; loose weights need ``--arch``.
    """
    try:
        return SavedNetwork.load(path)
    except DamagedFileError as error:
        raise ValueError(f"--checkpoint: {error}; weights of others need --arch too") from error


def network_of_arch(
    arch: str, checkpoint: Path | None, *, channels: int, layers: int, num_classes: int
) -> SavedNetwork:
    """The network of an architecture with the weights of a file, or fresh ones.

    Args:
        num_classes: for fresh weights; those of a file have their own.

    Raises:
        ValueError: no architecture, no weights, or a file of another architecture.
    """
    genotype = read_architecture(arch)
    text = genotype_text(genotype)
    if checkpoint is None:
        net = build_derived(genotype, channels=channels, num_classes=num_classes, layers=layers)
        weights = net.state_dict()
        return SavedNetwork(
            text, channels, layers, num_classes, False, None, None, [], dict(weights)
        )
    try:
        found = SavedNetwork.load(checkpoint)
    except ValueError:  # not one of ours
        weights = load_weights(checkpoint)
    else:
        if found.genotype != text:
            raise ValueError(f"--checkpoint: is of another architecture, {found.genotype}")
        return found
    bias = weights.get("classifier.bias", torch.zeros(num_classes))
    return SavedNetwork(text, channels, layers, len(bias), False, None, None, [], weights)

# SPDX-License-Identifier: Apache-2.0
"""A trained derived network in a file, with what is needed to build it and to feed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darts_fast.derive.build import build_derived
from darts_fast.derive.nasbench201 import NasBench201Network
from darts_fast.derive.network import NetworkCIFAR
from darts_fast.files import atomic_save, load_saved

__all__ = ["SavedNetwork", "load_weights"]

AUXILIARY = "auxiliary_head."
WRAPPED = "module."  # of DataParallel


@dataclass(frozen=True)
class SavedNetwork:
    """What ``train`` and ``search --derive`` keep of a network, ``network-LABEL.pt``.

    Attributes:
        genotype: the architecture as text.
        channels, layers, num_classes, auxiliary: see `build_derived`.
        mean, std: per channel, scale 0 to 1, that images were normalised with; None if unknown.
        class_names: by label; empty if unknown.
        image_size: height and width of its images; None if unknown.
        state_dict: the weights.
    """

    genotype: str
    channels: int
    layers: int
    num_classes: int
    auxiliary: bool
    mean: list[float] | None
    std: list[float] | None
    class_names: list[str]
    state_dict: dict[str, Tensor]
    image_size: list[int] | None = None

    def save(self, path: str | Path) -> None:
        """Write it; the file loads with ``torch.load(path, weights_only=True)`` as a dict."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        atomic_save(path, fields)

    @classmethod
    def load(cls, path: str | Path) -> SavedNetwork:
        """Read what :meth:`save` wrote; files of versions without ``image_size`` too.

        Raises:
            DamagedFileError: not written by darts_fast, or changed since.
            ValueError: written by darts_fast, but not a derived network.
        """
        found = load_saved(path)
        missing = {*cls.__dataclass_fields__} - {"image_size"}
        if isinstance(found, dict):
            missing -= {*found}
        if missing:
            raise ValueError(
                f"{path}: a derived network has {', '.join(sorted(missing))}, got a file without"
            )
        return cls(**{name: found[name] for name in cls.__dataclass_fields__ if name in found})

    def build(self) -> NetworkCIFAR | NasBench201Network:
        """The network in evaluation mode, without its auxiliary head, which only training uses.

        Raises:
            ValueError: the weights are not of that architecture and size.
        """
        with torch.random.fork_rng(devices=[]):
            net = build_derived(
                self.genotype,
                channels=self.channels,
                num_classes=self.num_classes,
                layers=self.layers,
            )
        used = {k: v for k, v in self.state_dict.items() if not k.startswith(AUXILIARY)}
        try:
            net.load_state_dict(used)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"derived network: the weights must be of {self.channels} channels and "
                f"{self.layers} layers of that genotype, got: {reason[:200]}"
            ) from None
        return net.eval()


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The state_dict in a file of PyTorch's, as the DARTS code writes them: alone or under
    ``state_dict``, with or without the prefix of a DataParallel.

    Raises:
        ValueError: the file holds something else, or objects that ``weights_only`` refuses.
        OSError: it cannot be read.
    """
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises almost anything for a file that is none of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a file of weights ({reason})") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if (
        not isinstance(found, Mapping)
        or not found
        or not all(isinstance(value, Tensor) for value in found.values())
    ):
        raise ValueError(f"{path}: must hold a state_dict, got {type(found).__name__}")
    return {str(name).removeprefix(WRAPPED): value for name, value in found.items()}

# SPDX-License-Identifier: Apache-2.0
"""Helpers of the training scripts (the original's ``nasbench201/utils.py``)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from darts_fast.compat import _transforms, _utils
from darts_fast.compat._transforms import Compose, cifar_transforms
from darts_fast.compat._utils import (
    AvgrageMeter,
    accuracy,
    count_parameters_in_MB,
    create_exp_dir,
    load,
    save,
)
from darts_fast.compat.darts_pt._early_stopping import EVLocalAvg
from darts_fast.derive import build_derived
from darts_fast.nn.operations import drop_path

__all__ = [
    "AvgrageMeter",
    "Cutout",
    "EVLocalAvg",
    "_data_transforms_cifar10",
    "_data_transforms_cifar100",
    "_data_transforms_svhn",
    "accuracy",
    "count_parameters_in_Compact",
    "count_parameters_in_MB",
    "create_exp_dir",
    "drop_path",
    "gen_comb",
    "load",
    "load_checkpoint",
    "pick_gpu_lowest_memory",
    "save",
    "save_checkpoint",
]

_CIFAR10 = ([0.49139968, 0.48215827, 0.44653124], [0.24703233, 0.24348505, 0.26158768])
_CIFAR100 = ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762])
_SVHN = ([0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970])

_Statistics = tuple[list[float], list[float]]


class Cutout(_transforms.Cutout):
    """Cut with probability `prob`."""

    def __init__(self, length: int, prob: float = 1.0) -> None:
        super().__init__(length)
        self.prob = prob

    def __call__(self, img: Tensor) -> Tensor:
        return super().__call__(img) if np.random.binomial(1, self.prob) else img  # noqa: NPY002


def _transforms_for(statistics: _Statistics, args: Any) -> tuple[Compose, Compose]:
    cutout = Cutout(args.cutout_length, args.cutout_prob) if args.cutout else None
    return cifar_transforms(*statistics, cutout)


def _data_transforms_cifar10(args: Any) -> tuple[Compose, Compose]:
    """Of training and validation images; args: `cutout`, `cutout_length`, `cutout_prob`."""
    return _transforms_for(_CIFAR10, args)


def _data_transforms_cifar100(args: Any) -> tuple[Compose, Compose]:
    """As `_data_transforms_cifar10`."""
    return _transforms_for(_CIFAR100, args)


def _data_transforms_svhn(args: Any) -> tuple[Compose, Compose]:
    """As `_data_transforms_cifar10`."""
    return _transforms_for(_SVHN, args)


def count_parameters_in_Compact(model: Any) -> float:  # noqa: N802
    """Millions of weights of the network that the present genotype stands for: 36 channels, 20
    cells, without its auxiliary head.
    """
    genotype = model.genotype()
    with torch.device("meta"):
        derived = build_derived(genotype, channels=36, num_classes=model._num_classes, layers=20)
    return count_parameters_in_MB(derived)


def save_checkpoint(
    state: Mapping[str, Any],
    is_best: bool,
    save: str | Path,
    per_epoch: bool = False,
    prefix: str = "",
) -> None:
    """Write `state` into the directory `save` as ``checkpoint.pth.tar``, with per_epoch as
    ``checkpoint_{epoch}.pth.tar``; the best also as ``model_best.pth.tar``.
    """
    suffix = f"_{state['epoch']}" if per_epoch else ""
    _utils.save_checkpoint(state, is_best, save, f"{prefix}checkpoint{suffix}.pth.tar")


def load_checkpoint(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    save: str | Path,
    epoch: int | None = None,
) -> tuple[nn.Module, torch.optim.Optimizer, int, float]:
    """Load weights and optimizer; gives (model, optimizer, epoch, best_acc_top1).

    Raises FileNotFoundError if there is no such checkpoint.
    """
    suffix = "" if epoch is None else f"_{epoch}"
    checkpoint = torch.load(Path(save) / f"checkpoint{suffix}.pth.tar", map_location="cpu")
    model.load_state_dict(checkpoint["state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return model, optimizer, checkpoint["epoch"], checkpoint["best_acc_top1"]


def pick_gpu_lowest_memory() -> int:
    """The CUDA device with the largest share of free memory (``--gpu auto``).

    Raises RuntimeError if there is none.
    """
    devices = range(torch.cuda.device_count())
    if not devices:
        raise RuntimeError("pick_gpu_lowest_memory: there must be a CUDA device, got none")
    memory = [torch.cuda.mem_get_info(device) for device in devices]
    return max(devices, key=lambda device: memory[device][0] / memory[device][1])


def gen_comb(eids: Sequence[int]) -> list[tuple[int, int]]:
    """Every pair of edges, in order."""
    return list(itertools.combinations(eids, 2))

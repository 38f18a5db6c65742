# SPDX-License-Identifier: Apache-2.0
"""Helpers of the training scripts."""

from __future__ import annotations

from typing import Any

from darts_fast.compat._transforms import Compose, Cutout, cifar_transforms
from darts_fast.compat._utils import (
    AvgrageMeter,
    accuracy,
    count_parameters_in_MB,
    create_exp_dir,
    load,
    save,
    save_checkpoint,
)
from darts_fast.nn.operations import drop_path

__all__ = [
    "AvgrageMeter",
    "Cutout",
    "_data_transforms_cifar10",
    "accuracy",
    "count_parameters_in_MB",
    "create_exp_dir",
    "drop_path",
    "load",
    "save",
    "save_checkpoint",
]

CIFAR_MEAN = [0.49139968, 0.48215827, 0.44653124]
CIFAR_STD = [0.24703233, 0.24348505, 0.26158768]


def _data_transforms_cifar10(args: Any) -> tuple[Compose, Compose]:
    """Transforms of training and validation images; args: `cutout`, `cutout_length`."""
    cutout = Cutout(args.cutout_length) if args.cutout else None
    return cifar_transforms(CIFAR_MEAN, CIFAR_STD, cutout)

# SPDX-License-Identifier: Apache-2.0
"""The checks that several functions make, in one wording."""

from __future__ import annotations

import torch
from torch import Tensor

from darts_fast.backend import backend, bf16_maps
from darts_fast.reference import PRECISION_FULL, PRECISION_MAPS


def check_images(op: str, name: str, x: Tensor, stride: int, groups: int) -> None:
    """x is a batch of maps that the kernels take, and the settings fit it."""
    if x.dim() != 4:
        raise ValueError(f"{op}: {name} must have 4 dimensions [N, C, H, W], got {list(x.shape)}")
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: {name} must have channels, rows and columns, got {list(x.shape)}")
    if backend() == "fused" and kernel_dtype(x) not in (torch.float32, torch.float64):
        raise NotImplementedError(f"{op}: {name} must be float32 or float64, got {x.dtype}")
    if stride not in (1, 2):
        raise ValueError(f"{op}: stride must be 1 or 2, got {stride}")
    if groups < 1 or x.shape[0] % groups:
        raise ValueError(
            f"{op}: groups must divide the batch, got {groups} groups for a batch of {x.shape[0]}"
        )


def check_tensor(
    op: str, name: str, value: Tensor, shape: tuple[int, ...], like: Tensor, of: str
) -> None:
    """`value` has this shape, and the dtype and device of `like`, which the message calls `of`."""
    if value.shape != shape:
        raise ValueError(f"{op}: {name} must have shape {list(shape)}, got {list(value.shape)}")
    if kernel_dtype(value) != kernel_dtype(like):
        raise TypeError(
            f"{op}: {name} must have the dtype of {of}, {like.dtype}, got {value.dtype}"
        )
    if value.device != like.device:
        raise ValueError(
            f"{op}: {name} must be on the device of {of}, {like.device}, got {value.device}"
        )


def kernel_dtype(value: Tensor) -> torch.dtype:
    """The dtype that the kernels see: autocast makes lower precisions float32."""
    if value.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(
        value.device.type
    ):
        return torch.float32
    return value.dtype


def map_precision(state: Tensor, *, save: bool) -> int:
    """The precision of a cell's maps for its states: what `use_bf16_maps` says of saved ones."""
    half = save and bf16_maps() and kernel_dtype(state) == torch.float32
    return PRECISION_MAPS if half else PRECISION_FULL

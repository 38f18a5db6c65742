# SPDX-License-Identifier: Apache-2.0
"""Checks that readers share; each error is one line with file, rule and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darts_fast.data.images import DataError

__all__ = ["checked_labels", "entry", "kind_of", "no_gaps", "one_line"]


def entry(path: Path, content: dict[str, Any], key: str) -> Any:
    """What the file holds under `key`."""
    if key not in content:
        raise DataError(f"{path}: must have an entry '{key}', got {sorted(content)}")
    return content[key]


def checked_labels(
    path: Path | str, key: str, labels: np.ndarray, count: int, classes: int | None
) -> Tensor:
    """Labels as int64 [count], from 0 to classes - 1; classes=None sets no upper bound."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: {key} must be integers [{count}], got {kind_of(labels)}")
    if len(labels) != count:
        raise DataError(
            f"{path}: {key} must have one label per image, got {len(labels)} for {count}"
        )
    bad = (labels < 0) if classes is None else (labels < 0) | (labels >= classes)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        rule = "at least 0" if classes is None else f"from 0 to {classes - 1}"
        raise DataError(f"{path}: {key} must be {rule}, got {labels[first]} at image {first}")
    return torch.from_numpy(labels.astype(np.int64))


def kind_of(value: Any) -> str:
    """Type and shape, for messages."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__


def no_gaps(path: Path | str, key: str, labels: np.ndarray) -> None:
    """Raises DataError unless non-negative labels use every class up to their largest."""
    values = np.unique(labels)
    largest, first = int(values[-1]), int(np.argmax(values != np.arange(len(values))))
    if largest != len(values) - 1:
        raise DataError(
            f"{path}: {key} must use every class from 0 to its largest label {largest}, "
            f"got no image of {largest + 1 - len(values)} of them, the first is {first}"
        )


def one_line(error: Exception) -> str:
    """Type and beginning of an error's text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"

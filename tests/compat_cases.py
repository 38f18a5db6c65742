# SPDX-License-Identifier: Apache-2.0
"""What the tests of darts_fast.compat share."""

from __future__ import annotations

import inspect
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ARGS = Namespace(
    method="darts-proj",
    learning_rate=0.025,
    learning_rate_min=0.001,
    momentum=0.9,
    weight_decay=3e-4,
    arch_learning_rate=3e-4,
    arch_weight_decay=1e-3,
    grad_clip=5,
)


def with_args(**changed: Any) -> Namespace:
    """ARGS with some changed or added."""
    return Namespace(**{**vars(ARGS), **changed})


def batch(seed: int, size: int = 4) -> tuple[Tensor, Tensor]:
    """Images [size, 3, 8, 8] in float64 and labels of 5 classes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, dtype=torch.float64, generator=generator)
    return images, torch.randint(5, (size,), generator=generator)


def names(function: Callable[..., Any]) -> list[str]:
    """The parameters of a function, or of a class."""
    return list(inspect.signature(function).parameters)

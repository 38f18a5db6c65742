# SPDX-License-Identifier: Apache-2.0
"""Time of one forward pass, measured on this machine with the threads that torch has now."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

__all__ = ["REPEATS", "forward_ms", "median_ms"]

REPEATS = 20
WARM_UP = 3


def median_ms(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median wall time of a call in milliseconds, after calls that warm up.

    Raises:
        ValueError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"latency: repeats must be at least 1, got {repeats}")
    for _ in range(WARM_UP):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def forward_ms(net: nn.Module, shape: tuple[int, int, int, int], repeats: int = REPEATS) -> float:
    """Median milliseconds of the network's forward pass in evaluation mode on CPU images of a
    shape ``[N, C, H, W]``; no gradients. The training flag of every module is put back.

    Raises:
        ValueError: ``repeats`` is below 1.
    """
    flags = [(module, module.training) for module in net.modules()]
    images = torch.zeros(shape)
    try:
        with torch.inference_mode():
            net.eval()
            return median_ms(lambda: net(images), repeats)
    finally:
        for module, flag in flags:
            module.training = flag

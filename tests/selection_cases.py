# SPDX-License-Identifier: Apache-2.0
"""Small supernets and batches for the tests of selections."""

from __future__ import annotations

import torch
from torch import Tensor

from darts_fast.nn import Supernet, build_supernet

Batches = list[tuple[Tensor, Tensor]]


def small_net(space: str) -> Supernet:
    """Alphas that tell the operations apart."""
    torch.manual_seed(0)
    layers = 1 if space == "nasbench201" else 3
    net = build_supernet(space, channels=4, num_classes=3, layers=layers)
    with torch.no_grad():
        for alpha in net.arch_parameters():
            alpha.copy_(torch.randn(alpha.shape))
    return net


def small_batches(*sizes: int) -> Batches:
    """Random images of 8x8, a batch of each size."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 3, 8, 8, generator=generator),
            torch.randint(3, (size,), generator=generator),
        )
        for size in sizes
    ]

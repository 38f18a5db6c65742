# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-adds of a network, counted exactly from the shapes that it computes.

A convolution with weight ``[out, in / groups, kh, kw]`` and output map ``[out, H, W]`` takes
``H W * out * in / groups * kh * kw`` multiply-adds (MACs) for an image; a linear layer takes
``in * out``. Batch norms, activations, pools and sums are not counted, as is usual in the field,
whose papers mostly say FLOPs for them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Cost", "count"]


@dataclass(frozen=True)
class Cost:
    """What a network needs for one image: parameters, and multiply-adds of its forward pass."""

    parameters: int
    macs: int


def count(net: nn.Module, image_shape: tuple[int, int, int]) -> Cost:
    """Count a network in evaluation mode; it is not run, and neither changed nor moved.

    Args:
        net: built of convolutions, linear layers and modules without matrices of their own.
        image_shape: channels, height and width of one image.

    Raises:
        TypeError: a module that has a matrix and is neither a `Conv2d` nor a `Linear`.
    """
    shapes = copy.deepcopy(net).to("meta").eval()
    total = 0

    def add(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        places = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        total += places * module.weight.numel()

    for name, module in shapes.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(add)
        elif any(weight.ndim > 1 for weight in module.parameters(recurse=False)):
            raise TypeError(
                f"count: matrices must belong to Conv2d or Linear, got {type(module).__name__} "
                f"at {name or 'the network itself'}"
            )
    with torch.no_grad():
        shapes(torch.empty(1, *image_shape, device="meta"))
    return Cost(sum(weight.numel() for weight in net.parameters()), total)

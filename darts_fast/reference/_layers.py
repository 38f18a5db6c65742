# SPDX-License-Identifier: Apache-2.0
"""The layers that the specifications share, in forms that can be differentiated twice."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

NORM_NONE, NORM_BATCH, NORM_RUNNING = 0, 1, 2

# What native ops do in bfloat16: nothing, storing maps, pointwise products too. All accumulate in
# the dtype of the states.
PRECISION_FULL, PRECISION_MAPS, PRECISION_PRODUCTS = 0, 1, 2


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of x [N, C, H, W]; 0 and 1 of an empty batch."""
    if x.numel() == 0:
        return x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    return x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)


def normalise(
    x: Tensor, mean: Tensor, var: Tensor, eps: float, gamma: Tensor | None, beta: Tensor | None
) -> Tensor:
    """Batch norm of x [N, C, H, W] with given statistics [C]."""
    x = (x - _channels(mean)) / _channels(var + eps).sqrt()
    if gamma is not None:
        x = x * _channels(gamma)
    if beta is not None:
        x = x + _channels(beta)
    return x


def depthwise(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """One filter per channel: [N, C, H, W] and [C, 1, k, k], "same" padding."""
    total = torch.zeros_like(x[:, :, ::stride, ::stride])
    for ky, kx, tap in _taps(x, weight.shape[-1], stride, dilation):
        total = total + tap * weight[:, :, ky, kx].view(1, -1, 1, 1)
    return total


def dense(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """An ordinary convolution: [N, C, H, W] and [C', C, k, k], "same" padding."""
    height, width = x[:, :, ::stride, ::stride].shape[2:]
    total = x.new_zeros(x.shape[0], weight.shape[0], height, width)
    for ky, kx, tap in _taps(x, weight.shape[-1], stride, 1):
        total = total + pointwise(tap, weight[:, :, ky, kx])
    return total


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution of one tap: [N, C, H, W] and [C', C, 1, 1] or [C', C]."""
    return torch.einsum("nchw,oc->nohw", x, weight.flatten(1))


def factorized_reduce(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Pixels with even, then with odd row and column: [N, C, H, W] and [C' / 2, C, 1, 1] twice."""
    even, odd = pointwise(x[:, :, ::2, ::2], first), pointwise(x[:, :, 1::2, 1::2], second)
    return torch.cat([even, odd], dim=1)


def _taps(x: Tensor, kernel: int, stride: int, dilation: int) -> Iterator[tuple[int, int, Tensor]]:
    """(ky, kx, what that weight of a "same" convolution sees), sizes round up at a stride."""
    height, width = -(-x.shape[2] // stride), -(-x.shape[3] // stride)
    pad = dilation * (kernel - 1) // 2
    padded = functional.pad(x, (pad, pad + stride, pad, pad + stride))
    for ky in range(kernel):
        for kx in range(kernel):
            rows = padded[:, :, ky * dilation :: stride, kx * dilation :: stride]
            yield ky, kx, rows[:, :, :height, :width]


def _channels(value: Tensor) -> Tensor:
    return value.view(1, -1, 1, 1)

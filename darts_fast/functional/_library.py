# SPDX-License-Identifier: Apache-2.0
"""Convolutions that are PyTorch's own: wide ones on CUDA devices, where cuBLAS and cuDNN win."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from darts_fast.reference import NORM_BATCH, NORM_NONE

# The most channels that a pointwise convolution gives in this project's CUDA kernels; wider ones go
# to the library that PyTorch calls. Reasoned, not timed: docs/cuda-cell.md, "Libraries".
MOST_CUDA_CHANNELS = 64


def is_for_library(x: Tensor, channels: int) -> bool:
    """Whether convolutions of x to so many channels are PyTorch's: wide ones on CUDA devices."""
    return x.device.type == "cuda" and channels > MOST_CUDA_CHANNELS


def conv_blocks(
    inputs: Sequence[Tensor],
    mean: Tensor | None,
    var: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    norm: int,
    eps: float,
    sources: Sequence[int],
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    dilations: Sequence[int],
    stride: int,
    groups: int,
    active: Tensor | None,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """`darts_fast.reference.conv_blocks` by PyTorch's norms and convolutions.

    Nothing is read from the device. Branches compute the images of the groups that are active.
    """
    behind = []
    for source, x in enumerate(inputs):
        y = x.contiguous(memory_format=torch.channels_last)
        if norm != NORM_NONE and x.numel() > 0:
            scale, shift = (None if p is None else p[source] for p in (gamma, beta))
            given = [None if p is None or norm == NORM_BATCH else p[source] for p in (mean, var)]
            y = _normalise(y, groups, scale, shift, given, eps)
        behind.append(y.relu())
    table = [[True] * len(sources)] * groups if active is None else active.tolist()
    outputs, means, variances = [], [], []
    for b, source in enumerate(sources):
        weights = (depthwise[b], pointwise[b])
        runs = [bool(row[b]) for row in table]
        y, mean_of_group, var_of_group = _branch(
            behind[source], weights, stride, dilations[b], runs
        )
        outputs.append(y.contiguous(memory_format=torch.channels_last))
        means.append(mean_of_group)
        variances.append(var_of_group)
    return outputs, torch.stack(means, 1), torch.stack(variances, 1)


def _by_group(x: Tensor, groups: int, size: int) -> Sequence[Tensor]:
    return x.view(groups, size, *x.shape[1:]).unbind()


def _normalise(
    x: Tensor,
    groups: int,
    gamma: Tensor | None,
    beta: Tensor | None,
    given: Sequence[Tensor | None],
    eps: float,
) -> Tensor:
    """Every group by its own norm: with the given statistics [groups, C], or with its images'."""
    parts = []
    for group, images in enumerate(_by_group(x, groups, x.shape[0] // groups)):
        mean, var = (None if p is None else p[group] for p in given)
        own = mean is None
        cudnn = torch.backends.cudnn.enabled
        parts.append(torch.batch_norm(images, gamma, beta, mean, var, own, 0.0, eps, cudnn))
    return torch.cat(parts)


def _branch(
    x: Tensor, weights: tuple[Tensor, Tensor], stride: int, dilation: int, runs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The output of the groups that run, with its moments [groups, C']; 0, 0 and 1 of others."""
    size = x.shape[0] // len(runs)
    if not all(runs):
        images = _by_group(x, len(runs), size)
        x = torch.cat([part for part, run in zip(images, runs, strict=True) if run] or [x[:0]])
    y = _block(x, *weights, stride, dilation)
    parts = y.unflatten(0, (sum(runs), size))
    single = parts.detach() if y.dtype == torch.float64 else parts.detach().float()
    if y.numel() > 0:
        var, mean = torch.var_mean(single, (1, 3, 4), correction=0)
    else:
        mean, var = single.new_zeros(sum(runs), y.shape[1]), single.new_ones(sum(runs), y.shape[1])
    if all(runs):
        return y, mean, var
    computed = zip(parts, mean, var, strict=True)
    # The sum of no group: zeros to which a gradient may arrive.
    idle = parts[:0].sum(0), mean.new_zeros(y.shape[1]), mean.new_ones(y.shape[1])
    rows = [next(computed) if run else idle for run in runs]
    placed, means, variances = (torch.stack(values) for values in zip(*rows, strict=True))
    return placed.flatten(0, 1), means, variances


def _block(x: Tensor, depthwise: Tensor, pointwise: Tensor, stride: int, dilation: int) -> Tensor:
    if depthwise.numel() > 0:
        pad = dilation * (depthwise.shape[-1] - 1) // 2
        x = functional.conv2d(
            x, depthwise.to(x.dtype), None, stride, pad, dilation, groups=x.shape[1]
        )
    return functional.conv2d(x, pointwise.to(x.dtype))

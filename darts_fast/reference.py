# SPDX-License-Identifier: Apache-2.0
"""The specification of every native op in plain PyTorch.

Oracle of the tests, rival of the benchmarks, fallback where a kernel does not cover a case, and the
second derivative of the ops. Written to be read: nothing here is tuned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

NORM_NONE, NORM_BATCH, NORM_RUNNING = 0, 1, 2


def node_sum(
    maps: Sequence[Tensor],
    weights: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norms: Sequence[int],
    eps: Sequence[float],
    groups: int,
    active: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``sum_k w[g, k] * BN_k(y_k)`` per group g; arguments as `darts_fast.functional.node_sum`.

    Returns node [groups * N, C, H, W], mean and biased var, both [groups, K, C] (0 and 1 for terms
    without statistics).
    """
    first = maps[0]
    size = first.shape[0] // groups
    nodes, means, variances = [], [], []
    for group in range(groups):
        node = torch.zeros_like(first[:size])
        for k, y_all in enumerate(maps):
            y = y_all[group * size : (group + 1) * size]
            mean, var = first.new_zeros(first.shape[1]), first.new_ones(first.shape[1])
            if active is not None:  # hides what an inactive map holds, infinities too
                y = torch.where(active[group, k].to(y.device), y, 0.0)
            if norms[k] == NORM_RUNNING:
                assert running_mean is not None
                assert running_var is not None
                mean, var = running_mean[k], running_var[k]
            elif norms[k] == NORM_BATCH and y.numel() > 0:
                mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
            if norms[k] != NORM_NONE:
                y = (y - _channels(mean)) / _channels(var + eps[k]).sqrt()
                if gamma is not None:
                    y = y * _channels(gamma[k])
                if beta is not None:
                    y = y + _channels(beta[k])
            term = weights[group, k] * y
            if active is not None:
                term = torch.where(active[group, k].to(y.device), term, 0.0)
                if norms[k] == NORM_BATCH:
                    var = torch.where(active[group, k].to(y.device), var, 1.0)
            node = node + term
            means.append(mean.detach())
            variances.append(var.detach())
        nodes.append(node)
    shape = (groups, len(maps), first.shape[1])
    return torch.cat(nodes), torch.stack(means).view(shape), torch.stack(variances).view(shape)


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
    """``pointwise_b(depthwise_b(ReLU([BN] x)))``; see `darts_fast.functional.conv_blocks`.

    Returns the outputs [groups * N, C', H', W'] and their means and biased variances, both
    [groups, B, C'].
    """
    size = inputs[0].shape[0] // groups
    outputs: list[list[Tensor]] = [[] for _ in sources]
    means, variances = [], []
    for group in range(groups):
        rows = slice(group * size, (group + 1) * size)
        behind_relu = []
        for source, x_all in enumerate(inputs):
            x = x_all[rows]
            if norm != NORM_NONE:
                assert mean is not None
                assert var is not None
                center, spread = mean[source, group], var[source, group]
                if norm == NORM_BATCH and x.numel() > 0:
                    center, spread = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
                x = (x - _channels(center)) / _channels(spread + eps).sqrt()
                if gamma is not None:
                    x = x * _channels(gamma[source])
                if beta is not None:
                    x = x + _channels(beta[source])
            behind_relu.append(x.relu())
        for b, source in enumerate(sources):
            y = behind_relu[source]
            weight = depthwise[b]
            if weight.numel() > 0:
                y = _depthwise(y, weight, stride, dilations[b])
            y = torch.einsum("nchw,oc->nohw", y, pointwise[b].flatten(1))
            out_mean, out_var = y.new_zeros(y.shape[1]), y.new_ones(y.shape[1])
            if y.numel() > 0:
                out_mean, out_var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
            if active is not None:
                runs = active[group, b].to(y.device)
                y = torch.where(runs, y, 0.0)
                out_mean = torch.where(runs, out_mean, 0.0)
                out_var = torch.where(runs, out_var, 1.0)
            outputs[b].append(y)
            means.append(out_mean.detach())
            variances.append(out_var.detach())
    shape = (groups, len(sources), pointwise[0].shape[0])
    return (
        [torch.cat(parts) for parts in outputs],
        torch.stack(means).view(shape),
        torch.stack(variances).view(shape),
    )


def _depthwise(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """The sum over taps of a shifted, padded x: [N, C, H, W] and [C, 1, k, k], "same" padding."""
    kernel = weight.shape[-1]
    height, width = -(-x.shape[2] // stride), -(-x.shape[3] // stride)
    pad = dilation * (kernel - 1) // 2
    padded = functional.pad(x, (pad, pad + stride, pad, pad + stride))
    total = torch.zeros_like(x[:, :, ::stride, ::stride])
    for ky in range(kernel):
        for kx in range(kernel):
            rows = padded[:, :, ky * dilation :: stride, kx * dilation :: stride]
            total = total + rows[:, :, :height, :width] * weight[:, :, ky, kx].view(1, -1, 1, 1)
    return total


def _channels(value: Tensor) -> Tensor:
    return value.view(1, -1, 1, 1)

# SPDX-License-Identifier: Apache-2.0
"""The specification of conv_blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from darts_fast.reference import _layers
from darts_fast.reference._layers import NORM_BATCH, NORM_NONE


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
                    center, spread = _layers.moments(x)
                scale, shift = (None if p is None else p[source] for p in (gamma, beta))
                x = _layers.normalise(x, center, spread, eps, scale, shift)
            behind_relu.append(x.relu())
        for b, source in enumerate(sources):
            y = behind_relu[source]
            if depthwise[b].numel() > 0:
                y = _layers.depthwise(y, depthwise[b], stride, dilations[b])
            y = _layers.pointwise(y, pointwise[b])
            out_mean, out_var = _layers.moments(y)
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

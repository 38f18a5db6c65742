# SPDX-License-Identifier: Apache-2.0
"""The specification of node_sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from darts_fast.reference._layers import (
    NORM_BATCH,
    NORM_NONE,
    NORM_RUNNING,
    moments,
    normalise,
)


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
            elif norms[k] == NORM_BATCH:
                mean, var = moments(y)
            if norms[k] != NORM_NONE:
                scale, shift = (None if p is None else p[k] for p in (gamma, beta))
                y = normalise(y, mean, var, eps[k], scale, shift)
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

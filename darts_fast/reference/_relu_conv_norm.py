# SPDX-License-Identifier: Apache-2.0
"""The specification of relu_conv_norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from darts_fast.reference import _layers
from darts_fast.reference._layers import NORM_BATCH


def relu_conv_norm(
    input: Tensor,
    weights: Sequence[Tensor],
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: int,
    eps: float,
    stride: int,
    groups: int,
    relu: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``BN(convolution(ReLU(input)))`` per group, without the ReLU unless `relu`; see
    `darts_fast.functional.relu_conv_norm`.

    Returns the output and the map before its norm, both [groups * N, C', H', W'], mean and biased
    var, both [groups, C'].
    """
    x = input.relu() if relu else input
    if len(weights) == 1:
        raw = _layers.dense(x, weights[0], stride)
    else:
        raw = _layers.factorized_reduce(x, *weights)
    size = input.shape[0] // groups
    outputs, means, variances = [], [], []
    for group in range(groups):
        y = raw[group * size : (group + 1) * size]
        if norm == NORM_BATCH:
            mean, var = _layers.moments(y)
        else:
            assert running_mean is not None
            assert running_var is not None
            mean, var = running_mean, running_var
        outputs.append(_layers.normalise(y, mean, var, eps, gamma, beta))
        means.append(mean.detach())
        variances.append(var.detach())
    return torch.cat(outputs), raw.detach(), torch.stack(means), torch.stack(variances)

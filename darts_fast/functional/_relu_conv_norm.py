# SPDX-License-Identifier: Apache-2.0
"""relu_conv_norm with named arguments and checks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from darts_fast import _ops, reference
from darts_fast.backend import backend
from darts_fast.functional._candidates import Norm
from darts_fast.functional._checks import check_images, check_tensor
from darts_fast.functional._norms import _NORMS

_OP = "relu_conv_norm"


class ReluConvNorm(NamedTuple):
    """What `relu_conv_norm` returns."""

    output: Tensor
    """[groups * N, C', H', W'], channels_last."""
    mean: Tensor
    """[groups, C']: the means that the norm subtracted; not differentiable."""
    var: Tensor
    """[groups, C']: the biased variances; not differentiable."""


def relu_conv_norm(
    x: Tensor,
    weights: Sequence[Tensor],
    norm: Norm,
    *,
    stride: int = 1,
    groups: int = 1,
    relu: bool = True,
) -> ReluConvNorm:
    """ReLU, convolution and batch norm of a state, as cells preprocess their inputs.

    Equivalent to, for each of the `groups` slices of the batch::

        x = x.relu()
        y = conv2d(x, weights[0], stride=stride, padding="same")                      # or
        y = cat([conv2d(x[:, :, i:, i:], weights[i], stride=2) for i in (0, 1)], 1)
        output = batch_norm(y)

    in one sweep that writes y with its moments and one that normalises it. It is ReLUConvBN and,
    with two weights, FactorizedReduce of the code of DARTS (arXiv 1806.09055). The op is
    functional: running statistics are updated by `update_running_statistics`.

    Args:
        x: [groups * N, C, H, W], float32 or float64, any strides. Under autocast also lower
            precisions, computed in float32; in bfloat16, and on a CUDA device in float16, the
            output has that dtype.
        weights: one [C', C, k, k] with k = 1 or 3 ("same" padding), or the two halves
            [C' / 2, C, 1, 1] of a factorized reduce, of the pixels with even and with odd row and
            column (stride 2, even H and W).
        norm: of kind "batch" (statistics of the group's own batch) or "running".
        stride: 1 or 2 (sizes round up).
        groups: masked variants of a network stacked along the batch, each with its own statistics.
        relu: False for a convolution and its norm alone, as in a stem.

    Returns:
        `ReluConvNorm` (output, mean, var).

    Raises:
        ValueError: shapes or settings that do not fit; one value per channel under "batch".
        TypeError: dtypes that differ.
        NotImplementedError: a dtype without kernels; relu False on a CUDA device.
    """
    check_images(_OP, "x", x, stride, groups)
    channels = _check_weights(x, weights, stride)
    _check_norm(x, norm, channels, stride, groups)
    running = norm.kind == "running"
    function: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = reference.relu_conv_norm
    if backend() == "fused":
        leaves = (x, *weights, norm.gamma, norm.beta)
        # Only a backward reads the map before the norm.
        save = torch.is_grad_enabled() and any(y is not None and y.requires_grad for y in leaves)
        function = functools.partial(_ops.relu_conv_norm, save=save)
    output, _, mean, var = function(
        x,
        list(weights),
        norm.gamma,
        norm.beta,
        norm.running_mean if running else None,
        norm.running_var if running else None,
        _NORMS[norm.kind],
        float(norm.eps),
        stride,
        groups,
        relu,
    )
    return ReluConvNorm(output, mean, var)


def _check_weights(x: Tensor, weights: Sequence[Tensor], stride: int) -> int:
    """Returns the number of output channels."""
    if len(weights) not in (1, 2):
        raise ValueError(f"{_OP}: weights must be one, or two halves, got {len(weights)}")
    first = weights[0]
    if first.dim() != 4 or first.shape[0] == 0:
        raise ValueError(
            f"{_OP}: weights must have 4 dimensions [C', C, k, k] and channels, "
            f"got {list(first.shape)}"
        )
    kernel = first.shape[-1] if len(weights) == 1 else 1
    if kernel not in (1, 3):
        raise ValueError(f"{_OP}: the kernel must be 1 or 3, got {list(first.shape)}")
    if len(weights) == 2 and (stride != 2 or x.shape[2] % 2 or x.shape[3] % 2):
        raise ValueError(
            f"{_OP}: two halves need stride 2 and even sizes, "
            f"got stride {stride} for {list(x.shape)}"
        )
    shape = (first.shape[0], x.shape[1], kernel, kernel)
    for i, weight in enumerate(weights):
        check_tensor(_OP, f"weight {i}", weight, shape, x, "x")
    return shape[0] * len(weights)


def _check_norm(x: Tensor, norm: Norm, channels: int, stride: int, groups: int) -> None:
    if norm.kind not in ("batch", "running"):
        raise ValueError(f"{_OP}: norm must be batch or running, got {norm.kind!r}")
    if norm.kind == "running" and (norm.running_mean is None or norm.running_var is None):
        raise ValueError(f"{_OP}: norm running needs running_mean and running_var, got None")
    batch, _, height, width = x.shape
    if norm.kind == "batch" and batch == groups and max(height, width) <= stride:
        raise ValueError(
            f"{_OP}: expected more than 1 value per channel when training, "
            f"got x of {list(x.shape)} in {groups} groups at stride {stride}"
        )
    for name in ("gamma", "beta", "running_mean", "running_var"):
        value: Tensor | None = getattr(norm, name)
        if value is not None:
            check_tensor(_OP, name, value, (channels,), x, "x")

# SPDX-License-Identifier: Apache-2.0
"""Running statistics of batch norms, which the functional ops leave alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from darts_fast import _ops
from darts_fast.backend import cuda_kernels


@torch.no_grad()
def update_running_statistics(
    norms: Iterable[nn.BatchNorm2d], mean: Tensor, var: Tensor, count: int
) -> None:
    """Moves the running statistics of BatchNorm modules as their own forward would have.

    Args:
        norms: K modules; those that do not track statistics are left alone.
        mean: [K, C] batch means.
        var: [K, C] biased batch variances; the running variance takes the unbiased one.
        count: values per channel, N * H * W. With 0 only `num_batches_tracked` moves, as in torch.

    `momentum=None` gives the cumulative average, as in `torch.nn.BatchNorm2d`.
    """
    # Not by attribute: Module.__getattr__ is slow, and a cell has more than a hundred norms.
    kept = [
        (k, norm)
        for k, norm in enumerate(norms)
        if norm._buffers["running_mean"] is not None and norm._buffers["running_var"] is not None
    ]
    if not kept:
        return
    if len(kept) < len(mean):
        rows = [k for k, _ in kept]
        mean, var = mean[rows], var[rows]
    tracking = [norm for _, norm in kept]
    move = _move_native if _is_native(tracking, mean) else _move
    move(tracking, mean, var, count)


def _is_native(norms: Sequence[nn.BatchNorm2d], mean: Tensor) -> bool:
    return (
        (mean.is_cpu or (mean.is_cuda and cuda_kernels()))
        and mean.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and all(cast(Tensor, norm._buffers["running_mean"]).dtype == mean.dtype for norm in norms)
    )


def _move_native(norms: Sequence[nn.BatchNorm2d], mean: Tensor, var: Tensor, count: int) -> None:
    none = torch.empty(0)
    tracked = [norm._buffers["num_batches_tracked"] for norm in norms]
    _ops.move_running_statistics(
        [norm._buffers["running_mean"] for norm in norms],
        [norm._buffers["running_var"] for norm in norms],
        [none if counter is None else counter for counter in tracked],
        mean,
        var,
        [math.nan if norm.momentum is None else norm.momentum for norm in norms],
        count,
    )


def _move(norms: Sequence[nn.BatchNorm2d], mean: Tensor, var: Tensor, count: int) -> None:
    counters = [norm._buffers["num_batches_tracked"] for norm in norms]
    tracked = [counter for counter in counters if counter is not None]
    if tracked:
        torch._foreach_add_(tracked, 1)
    if count == 0:
        return
    moved: dict[float, list[int]] = {}
    for k, norm in enumerate(norms):
        momentum = norm.momentum
        if momentum is None:
            momentum = 1.0 / float(cast(Tensor, norm._buffers["num_batches_tracked"]))
        moved.setdefault(momentum, []).append(k)
    unbiased = var * (count / (count - 1) if count > 1 else 1.0)
    for momentum, rows in moved.items():
        for name, batch in (("running_mean", mean), ("running_var", unbiased)):
            running = [cast(Tensor, norms[k]._buffers[name]) for k in rows]
            values = batch if len(rows) == len(batch) else batch[rows]
            torch._foreach_lerp_(running, list(values.to(running[0].dtype).unbind()), momentum)

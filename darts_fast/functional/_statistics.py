# SPDX-License-Identifier: Apache-2.0
"""Running statistics of batch norms, which the functional ops leave alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from darts_fast import _C, _ops
from darts_fast.backend import cuda_kernels

_NATIVE = (torch.float32, torch.float64)


@torch.no_grad()
def update_running_statistics(
    norms: Iterable[nn.BatchNorm2d], mean: Tensor, var: Tensor, count: int
) -> None:
    """Moves the running statistics of BatchNorm modules as their own forward would have.

    Args:
        norms: K modules; those that do not track statistics are left alone.
        mean: [K, C] batch means; rows behind those are of operations without a norm.
        var: [K, C] biased batch variances; the running variance takes the unbiased one.
        count: values per channel, N * H * W. With 0 only `num_batches_tracked` moves, as in torch.

    `momentum=None` gives the cumulative average, as in `torch.nn.BatchNorm2d`.
    """
    norms = list(norms)
    if len(norms) < len(mean):
        mean, var = mean[: len(norms)], var[: len(norms)]
    if torch.compiler.is_compiling():
        _move(norms, mean, var, count)
    else:
        move_running_statistics(norms, mean, var, count)


@torch.no_grad()
def move_running_statistics(
    norms: Sequence[nn.BatchNorm2d | None],
    mean: Tensor,
    var: Tensor,
    count: int,
    *,
    training_only: bool = False,
) -> None:
    """`update_running_statistics` of modules, in one native call where there is one.

    Args: norms, None for a row that belongs to none; training_only, whether to leave those alone
    whose own forward would not move them now.
    """
    means, variances, counters, momenta = _C.running_statistics(
        list(norms), mean.new_empty(0), not training_only
    )
    if _is_native(means, mean):
        _ops.move_running_statistics(means, variances, counters, mean, var, momenta, count)
    else:
        moving = [norm if x.numel() else None for norm, x in zip(norms, means, strict=True)]
        _move(moving, mean, var, count)


def _is_native(running: Sequence[Tensor], mean: Tensor) -> bool:
    """Whether the native op moves these running means, or empty tensors, towards mean."""
    return (
        (mean.is_cpu or (mean.is_cuda and cuda_kernels()))
        and mean.dtype in _NATIVE
        and all(x.dtype == mean.dtype for x in running)
    )


def _move(norms: Sequence[nn.BatchNorm2d | None], mean: Tensor, var: Tensor, count: int) -> None:
    rows = [
        k
        for k, norm in enumerate(norms)
        if norm is not None and norm.running_mean is not None and norm.running_var is not None
    ]
    kept = [cast(nn.BatchNorm2d, norms[k]) for k in rows]
    if len(kept) < len(mean):
        mean, var = mean[rows], var[rows]
    counters = [norm._buffers["num_batches_tracked"] for norm in kept]
    tracked = [counter for counter in counters if counter is not None]
    if tracked:
        torch._foreach_add_(tracked, 1)
    if count == 0:
        return
    moved: dict[float, list[int]] = {}
    for k, norm in enumerate(kept):
        momentum = norm.momentum
        if momentum is None:
            momentum = 1.0 / float(cast(Tensor, norm._buffers["num_batches_tracked"]))
        moved.setdefault(momentum, []).append(k)
    unbiased = var * (count / (count - 1) if count > 1 else 1.0)
    for momentum, rows in moved.items():
        for name, batch in (("running_mean", mean), ("running_var", unbiased)):
            running = [cast(Tensor, kept[k]._buffers[name]) for k in rows]
            values = batch if len(rows) == len(batch) else batch[rows]
            torch._foreach_lerp_(running, list(values.to(running[0].dtype).unbind()), momentum)

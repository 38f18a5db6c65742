# SPDX-License-Identifier: Apache-2.0
"""Running statistics of batch norms, which the functional ops leave alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn


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
    kept: list[tuple[int, nn.BatchNorm2d]] = []
    tracked = []
    for k, norm in enumerate(norms):
        buffers = norm._buffers
        if buffers["running_mean"] is None or buffers["running_var"] is None:
            continue
        kept.append((k, norm))
        if buffers["num_batches_tracked"] is not None:
            tracked.append(buffers["num_batches_tracked"])
    if tracked:
        torch._foreach_add_(tracked, 1)
    if count == 0:
        return
    moved: dict[float, list[tuple[int, nn.BatchNorm2d]]] = {}
    for k, norm in kept:
        momentum = norm.momentum
        if momentum is None:
            momentum = 1.0 / float(cast(Tensor, norm._buffers["num_batches_tracked"]))
        moved.setdefault(momentum, []).append((k, norm))
    unbiased = var * (count / (count - 1) if count > 1 else 1.0)
    for momentum, members in moved.items():
        rows = [k for k, _ in members]
        for name, batch in (("running_mean", mean), ("running_var", unbiased)):
            running = [cast(Tensor, norm._buffers[name]) for _, norm in members]
            values = batch if len(rows) == len(batch) else batch[rows]
            torch._foreach_lerp_(running, list(values.to(running[0].dtype).unbind()), momentum)

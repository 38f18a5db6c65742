# SPDX-License-Identifier: Apache-2.0
"""Tensors in, tensors out: the native ops with named arguments and checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from darts_fast import _ops, reference
from darts_fast.backend import backend

__all__ = ["ConvBlocks", "NodeSum", "conv_blocks", "node_sum", "update_running_statistics"]

_NORMS = {
    "none": reference.NORM_NONE,
    "batch": reference.NORM_BATCH,
    "running": reference.NORM_RUNNING,
}


class NodeSum(NamedTuple):
    """What `node_sum` returns."""

    node: Tensor
    """[groups * N, C, H, W], channels_last."""
    mean: Tensor
    """[groups, K, C]: the means that were subtracted (0 for norm "none"); not differentiable."""
    var: Tensor
    """[groups, K, C]: the biased variances (1 for norm "none"); not differentiable."""


def node_sum(
    maps: Sequence[Tensor],
    weights: Tensor,
    norms: str | Sequence[str] = "batch",
    *,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    eps: float | Sequence[float] = 1e-5,
    groups: int = 1,
    active: Tensor | None = None,
) -> NodeSum:
    """The weighted sum of batch-normalised maps over all operations of all edges into a node.

    Equivalent to, for each of the `groups` slices of the batch::

        node = sum(w[k] * batch_norm(maps[k], weight=gamma[k], bias=beta[k]) for k in range(K))

    in two sweeps over memory instead of three per map. Its backward obtains the gradient of the
    weights, and so of the architecture parameters, from BatchNorm's own reductions
    (``dL/dw_k = sum_c gamma_k S2_k + beta_k S1``). The op is functional: running statistics are
    updated by `update_running_statistics`. It is the sum in DARTS (arXiv 1806.09055), equation 2,
    together with the batch normalisation that ends each operation.

    Args:
        maps: K tensors of one shape [groups * N, C, H, W], one dtype (float32, float64; lower
            precisions under autocast) and any strides: what each operation computes before its
            last BatchNorm.
        weights: [K], or [groups, K].
        norms: how each map is normalised, one string for all or one per map: "batch" (BatchNorm in
            train mode: statistics of the group's own batch), "running" (in eval mode:
            `running_mean` and `running_var`), or "none" (the map enters as it is).
        gamma: scale [K, C], or None for BatchNorm without affine parameters.
        beta: shift [K, C], or None.
        running_mean: [K, C]; read for "running" norms.
        running_var: [K, C]; read for "running" norms.
        eps: added to the variance, one for all or one per map.
        groups: masked variants of a network stacked along the batch, each with its own weights
            and statistics.
        active: bool [K] or [groups, K] on the CPU, or None for all. A map that is not active is
            neither read nor added, its mean and var are 0 and 1 unless given, and its gradients
            are 0.

    Returns:
        `NodeSum` (node, mean, var).

    Raises:
        ValueError: shapes, lengths, groups or norms that do not fit; one value per channel under
            "batch".
        TypeError: dtypes that differ.
        NotImplementedError: a dtype without kernels.
    """
    terms = len(maps)
    if terms == 0:
        raise ValueError("node_sum: needs at least one map, got none")
    if maps[0].dim() != 4:
        raise ValueError(
            f"node_sum: maps must have 4 dimensions [N, C, H, W], got {list(maps[0].shape)}"
        )
    for k, y in enumerate(maps):
        if y.shape != maps[0].shape:
            raise ValueError(
                f"node_sum: maps must have one shape, got {list(y.shape)} for map {k} "
                f"and {list(maps[0].shape)} for map 0"
            )
    if groups < 1 or maps[0].shape[0] % groups:
        raise ValueError(
            f"node_sum: groups must divide the batch, got {groups} groups "
            f"for a batch of {maps[0].shape[0]}"
        )
    numbers = _norm_numbers(norms, terms)
    if reference.NORM_BATCH in numbers and maps[0].numel() == maps[0].shape[1] * groups:
        raise ValueError(
            "node_sum: expected more than 1 value per channel when training, "
            f"got maps of {list(maps[0].shape)} in {groups} groups"
        )
    if reference.NORM_RUNNING in numbers and (running_mean is None or running_var is None):
        raise ValueError('node_sum: norm "running" needs running_mean and running_var, got None')
    per_channel = {
        "gamma": gamma,
        "beta": beta,
        "running_mean": running_mean,
        "running_var": running_var,
    }
    for name, value in per_channel.items():
        if value is not None and value.shape != (terms, maps[0].shape[1]):
            raise ValueError(
                f"node_sum: {name} must have shape [maps, channels] = "
                f"[{terms}, {maps[0].shape[1]}], got {list(value.shape)}"
            )
    op = _ops.node_sum if backend() == "fused" else reference.node_sum
    return NodeSum(
        *op(
            list(maps),
            _per_group("weights", weights, groups, terms),
            gamma,
            beta,
            running_mean,
            running_var,
            numbers,
            _eps_list(eps, terms),
            groups,
            None if active is None else _per_group("active", active, groups, terms),
        )
    )


def _norm_numbers(norms: str | Sequence[str], terms: int) -> list[int]:
    names = [norms] * terms if isinstance(norms, str) else list(norms)
    if len(names) != terms:
        raise ValueError(
            f"node_sum: norms must have one entry per map, got {len(names)} for {terms} maps"
        )
    for name in names:
        if name not in _NORMS:
            raise ValueError(f"node_sum: norms must be batch, running or none, got {name!r}")
    return [_NORMS[name] for name in names]


def _eps_list(eps: float | Sequence[float], terms: int) -> list[float]:
    values = [eps] * terms if isinstance(eps, (int, float)) else list(eps)
    if len(values) != terms:
        raise ValueError(
            f"node_sum: eps must have one entry per map, got {len(values)} for {terms} maps"
        )
    return [float(value) for value in values]


def _per_group(name: str, table: Tensor, groups: int, terms: int) -> Tensor:
    if table.shape == (terms,):
        table = table.unsqueeze(0).expand(groups, terms)
    if table.shape != (groups, terms):
        raise ValueError(
            f"node_sum: {name} must have one entry per map, [{terms}] or [{groups}, {terms}], "
            f"got {list(table.shape)} for {terms} maps in {groups} groups"
        )
    return table


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
    correction = count / (count - 1) if count > 1 else 1.0
    moved: dict[float, list[int]] = {}
    modules = list(norms)
    for k, norm in enumerate(modules):
        if norm.running_mean is None or norm.running_var is None:
            continue
        momentum = norm.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1.0 / float(norm.num_batches_tracked)
        if count > 0:
            assert momentum is not None
            moved.setdefault(momentum, []).append(k)
    unbiased = var * correction
    for momentum, rows in moved.items():
        for name, batch in (("running_mean", mean), ("running_var", unbiased)):
            running: list[Tensor] = [getattr(modules[k], name) for k in rows]
            values = list(batch[rows].to(running[0].dtype).unbind())
            torch._foreach_lerp_(running, values, momentum)


class ConvBlocks(NamedTuple):
    """What `conv_blocks` returns."""

    outputs: list[Tensor]
    """[groups * N, C', H', W'] per branch, channels_last, before the branch's own batch norm."""
    mean: Tensor
    """[groups, B, C'] of the outputs; not differentiable."""
    var: Tensor
    """[groups, B, C'], biased; not differentiable."""


def conv_blocks(
    inputs: Sequence[Tensor],
    depthwise: Sequence[Tensor | None],
    pointwise: Sequence[Tensor],
    *,
    sources: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    stride: int = 1,
    norm: str = "none",
    mean: Tensor | None = None,
    var: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    groups: int = 1,
    active: Tensor | None = None,
) -> ConvBlocks:
    """Many blocks ``[BatchNorm ->] ReLU -> depthwise -> pointwise`` at once, with output moments.

    Equivalent to, for every branch b::

        x = inputs[sources[b]].relu()   # of its batch norm, where there is one
        x = conv2d(x, depthwise[b], stride=stride, padding="same", dilation=d, groups=C)
        outputs[b] = conv2d(x, pointwise[b])

    An image of an input is read once for all its branches and no map between the two convolutions
    is stored; backward computes the depthwise maps again. These blocks are the separable and
    dilated convolutions of DARTS (arXiv 1806.09055, section 3.1).

    Args:
        inputs: S tensors of one shape [groups * N, C, H, W], float32 or float64, any strides.
        depthwise: B weights [C, 1, k, k] with k = 3, 5 or 7; None leaves the convolution out.
        pointwise: B weights [C', C, 1, 1].
        sources: the input of each branch, default branch b reads input b.
        dilations: of each depthwise convolution, default 1.
        stride: of all depthwise convolutions, 1 or 2 (sizes round up).
        norm: "none", "batch" or "running": the batch norm in front of the ReLU of every input.
        mean: [S, groups, C], subtracted by the norm. For "batch" it must be the inputs' own mean,
            as the call that made them returned it: the gradient takes it as a function of them.
        var: [S, groups, C], biased; as `mean`.
        gamma: [S, C] or None.
        beta: [S, C] or None.
        eps: added to the variance.
        groups: masked variants stacked along the batch, each with its own statistics.
        active: bool [groups, B] on the CPU or None for all. A branch that is not active is not
            computed: its output is 0, its mean and var are 0 and 1, its gradients 0.

    Raises:
        ValueError: shapes, lengths or settings that do not fit.
        TypeError: dtypes that differ.
        NotImplementedError: a dtype without kernels.
    """
    branches = len(pointwise)
    if not inputs or not branches:
        raise ValueError(
            f"conv_blocks: needs inputs and branches, got {len(inputs)} and {branches}"
        )
    given_sources = list(range(branches)) if sources is None else list(sources)
    given_dilations = [1] * branches if dilations is None else list(dilations)
    lengths = (len(depthwise), len(given_sources), len(given_dilations))
    if lengths != (branches,) * 3:
        raise ValueError(
            "conv_blocks: depthwise, sources and dilations must have one entry per branch, "
            f"got {', '.join(map(str, lengths))} for {branches} branches"
        )
    if norm not in _NORMS:
        raise ValueError(f"conv_blocks: norm must be batch, running or none, got {norm!r}")
    op = _ops.conv_blocks if backend() == "fused" else reference.conv_blocks
    empty = pointwise[0].new_empty(0)
    return ConvBlocks(
        *op(
            list(inputs),
            mean,
            var,
            gamma,
            beta,
            _NORMS[norm],
            float(eps),
            given_sources,
            [empty if weight is None else weight for weight in depthwise],
            list(pointwise),
            given_dilations,
            stride,
            groups,
            active,
        )
    )

# SPDX-License-Identifier: Apache-2.0
"""node_sum with named arguments and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from darts_fast import _ops, reference
from darts_fast.backend import backend
from darts_fast.functional._norms import _NORMS


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
            last BatchNorm. On a CUDA device also float16 or bfloat16, beside float32 for all else:
            autocast brings them to its dtype, and the node has it.
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

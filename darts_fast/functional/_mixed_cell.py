# SPDX-License-Identifier: Apache-2.0
"""mixed_cell and mixed_op with named arguments and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from darts_fast import _ops, reference
from darts_fast.backend import backend
from darts_fast.functional._candidates import Candidate, CellArguments
from darts_fast.functional._checks import check_images, check_tensor, map_precision


class MixedCell(NamedTuple):
    """What `mixed_cell` and `mixed_op` return."""

    output: Tensor
    """[groups * N, multiplier * C, H', W'], channels_last: the last nodes, concatenated."""
    mean: Tensor
    """[groups, B, C]: the means that the norms subtracted, of all candidates in order (0 for norm
    "none" and inactive candidates); not differentiable."""
    var: Tensor
    """[groups, B, C]: the biased variances (1 where the mean is 0 for want of a norm); not
    differentiable."""


def mixed_cell(
    states: Sequence[Tensor],
    weights: Tensor,
    edges: Sequence[tuple[int, int, Sequence[Candidate]]],
    *,
    nodes: int,
    multiplier: int | None = None,
    stride: int = 1,
    groups: int = 1,
    shared: int = 0,
    active: Tensor | None = None,
) -> MixedCell:
    """A whole cell of mixed operations: every node the weighted sum of all ops on its edges.

    Equivalent to, for each of the `groups` slices of the batch::

        for node in range(len(states), len(states) + nodes):
            states.append(sum(w * op(states[source])
                              for op, w, source in candidates if op leads to node))
        output = torch.cat(states[-multiplier:], dim=1)

    It is the cell of DARTS (arXiv 1806.09055), section 2.1 with equation 2, from its preprocessed
    inputs on, and that of NAS-Bench-201 (arXiv 2001.00326). A state is read once for all candidates
    that leave it; between forward and backward only what enters the last batch norm of a candidate
    is kept, and the gradient of the weights is obtained from BatchNorm's own reductions. The op is
    functional: running statistics are updated by `update_running_statistics`.

    Args:
        states: S inputs of one shape [groups * N, C, H, W], one dtype (float32, float64; lower
            precisions under autocast) and any strides. Under autocast everything is computed in
            float32; in bfloat16 the output is bfloat16, maps of convolutions are stored in it, and
            pointwise products are made of it where the CPU has instructions for that (AVX512-BF16).
            On a CUDA device all maps are stored in autocast's dtype, float16 or bfloat16, and all
            matrix products are made of it, sums in float32.
        weights: [K], or [groups, K]; K counts the candidates of all edges in order.
        edges: (source, node, candidates); states are numbered, first the S inputs, then the nodes.
            A node reads earlier states only. Order is free, several edges may join two states.
        nodes: states that the cell computes. A node without edges is 0.
        multiplier: the last so many nodes are the output, default all.
        stride: of candidates that leave an input, 1 or 2 (sizes round up).
        groups: masked variants of a network stacked along the batch, each with its own weights
            and statistics.
        shared: so many of the states, the first ones, are one map [N, C, H, W] that all groups
            read. Nothing can be differentiated then.
        active: bool [K] or [groups, K] on the CPU, or None for all. A candidate that is not active
            is not computed: it adds nothing, even if its weight is infinite, and its gradients are
            0, or None for parameters of a candidate that no group computes (0 in a compiled graph).

    Returns:
        `MixedCell` (output, mean, var).

    Raises:
        ValueError: shapes, lengths, edges, candidates or settings that do not fit; one value per
            channel under "batch".
        TypeError: dtypes that differ.
        NotImplementedError: a dtype without kernels; shared states where a gradient is wanted.
    """
    if multiplier is None:
        multiplier = nodes
    op = "mixed_cell"
    return _run(op, states, weights, edges, nodes, multiplier, stride, groups, shared, active)


def mixed_op(
    x: Tensor,
    weights: Tensor,
    candidates: Sequence[Candidate],
    *,
    stride: int = 1,
    groups: int = 1,
    active: Tensor | None = None,
) -> MixedCell:
    """The mixed operation of one edge: ``sum(w * op(x) for w, op in zip(weights, candidates))``.

    DARTS (arXiv 1806.09055), equation 2, with the softmax already taken; `mixed_cell` with one
    input, one node and one edge, and with its errors.

    Args:
        x: [groups * N, C, H, W], float32 or float64 (lower precisions under autocast), any strides.
        weights: [K], or [groups, K].
        candidates: K operations.
        stride: of all candidates, 1 or 2 (sizes round up).
        groups: as in `mixed_cell`.
        active: as in `mixed_cell`.

    Returns:
        `MixedCell` (output, mean, var); the output is the sum [groups * N, C, H', W'].
    """
    return _run("mixed_op", [x], weights, [(0, 1, candidates)], 1, 1, stride, groups, 0, active)


def _run(
    op: str,
    states: Sequence[Tensor],
    weights: Tensor,
    edges: Sequence[tuple[int, int, Sequence[Candidate]]],
    nodes: int,
    multiplier: int,
    stride: int,
    groups: int,
    shared: int,
    active: Tensor | None,
) -> MixedCell:
    images = _check_states(op, states, stride, groups, shared)
    if not 1 <= multiplier <= nodes:
        raise ValueError(f"{op}: multiplier must be 1 to nodes, got {multiplier} for {nodes} nodes")
    plan = CellArguments(op, states[0], len(states), stride, groups, images)
    for source, node, candidates in edges:
        if not (0 <= source < node and len(states) <= node < len(states) + nodes):
            raise ValueError(
                f"{op}: every edge must lead from an earlier state to a node, got {source} to "
                f"{node} with {len(states)} inputs and {nodes} nodes"
            )
        for candidate in candidates:
            plan.add(source, node, candidate)
    terms = len(plan.ops) // 5
    if terms == 0:
        raise ValueError(f"{op}: needs at least one candidate, got none")
    weights = _per_group(op, "weights", weights, groups, terms)
    plan.expect("weights", weights, (groups, terms))
    if active is not None:
        if active.dtype != torch.bool or active.device.type != "cpu":
            raise TypeError(
                f"{op}: active must be a bool tensor on the CPU, "
                f"got {active.dtype} on {active.device}"
            )
        active = _per_group(op, "active", active, groups, terms)
    gammas, betas = plan.listed(plan.gammas), plan.listed(plan.betas)
    differentiable = (*states, weights, *plan.convolutions, *gammas, *betas)
    save = torch.is_grad_enabled() and any(value.requires_grad for value in differentiable)
    if save and shared:
        raise NotImplementedError(
            f"{op}: shared states have no gradient, got shared={shared} where one is wanted"
        )
    function = _ops.mixed_cell if backend() == "fused" else reference.mixed_cell
    output, _, mean, var = function(
        list(states),
        weights,
        plan.convolutions,
        gammas,
        betas,
        plan.listed(plan.running_means),
        plan.listed(plan.running_vars),
        plan.ops,
        plan.norms,
        plan.eps,
        nodes,
        multiplier,
        stride,
        groups,
        shared,
        active,
        map_precision(states[0], save=save),
        save,
    )
    return MixedCell(output, mean, var)


def _check_states(op: str, states: Sequence[Tensor], stride: int, groups: int, shared: int) -> int:
    """Returns the number of images of a group."""
    if not states:
        raise ValueError(f"{op}: needs at least one state, got none")
    if not 0 <= shared <= len(states):
        raise ValueError(
            f"{op}: shared must be 0 to the number of states, got {shared} for {len(states)} states"
        )
    own = shared if shared < len(states) else 0  # the first that every group has for its own
    first = states[own]
    parts = groups if shared < len(states) else min(groups, 1)
    check_images(op, "x" if op == "mixed_op" else "states", first, stride, parts)
    images = first.shape[0] // parts
    for i, state in enumerate(states):
        expected = (images if i < shared else first.shape[0], *first.shape[1:])
        if state.shape != expected:
            raise ValueError(
                f"{op}: states must have one shape (shared ones that of one group), "
                f"got {list(state.shape)} for state {i} and {list(first.shape)} for state {own}"
            )
        check_tensor(op, f"state {i}", state, expected, first, f"state {own}")
    return images


def _per_group(op: str, name: str, table: Tensor, groups: int, terms: int) -> Tensor:
    if table.shape == (terms,):
        table = table.unsqueeze(0).expand(groups, terms)
    if table.shape != (groups, terms):
        raise ValueError(
            f"{op}: {name} must have one entry per op, [{terms}] or [{groups}, {terms}], "
            f"got {list(table.shape)} for {terms} ops in {groups} groups"
        )
    return table

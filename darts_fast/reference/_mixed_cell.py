# SPDX-License-Identifier: Apache-2.0
"""The specification of mixed_cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from darts_fast.reference import _layers
from darts_fast.reference._layers import NORM_BATCH, NORM_NONE, NORM_RUNNING

# Kinds of operations, at their numbers in the op's `ops`.
CELL_KINDS = (
    "none",
    "identity",
    "max_pool",
    "avg_pool",
    "separable",
    "separable_twice",
    "dense",
    "factorized_reduce",
)
_CONVOLUTIONS = {"separable": 2, "separable_twice": 4, "dense": 1, "factorized_reduce": 2}
_NORMS = {"none": 0, "identity": 0, "separable_twice": 2}


class CellOp(NamedTuple):
    """One candidate operation of a cell."""

    source: int
    """The state it reads."""
    node: int
    """The state it is added to."""
    kind: str
    kernel: int
    dilation: int
    convolutions: range
    """Its weights in the list of all convolutions."""
    norms: range
    """Its batch norms in the lists of all norms, in order."""


def cell_ops(ops: Sequence[int]) -> list[CellOp]:
    """The operations that five numbers each (source, node, kind, kernel, dilation) stand for."""
    plan = []
    convolution = norm = 0
    for first in range(0, len(ops), 5):
        source, node, number, kernel, dilation = ops[first : first + 5]
        kind = CELL_KINDS[number]
        convolutions = range(convolution, convolution + _CONVOLUTIONS.get(kind, 0))
        norms = range(norm, norm + _NORMS.get(kind, 1))
        convolution, norm = convolutions.stop, norms.stop
        plan.append(CellOp(source, node, kind, kernel, dilation, convolutions, norms))
    return plan


class _Norms:
    """The batch norms of a cell in one group, and the statistics that they used."""

    def __init__(
        self,
        like: Tensor,
        kinds: Sequence[int],
        eps: Sequence[float],
        gammas: Sequence[Tensor],
        betas: Sequence[Tensor],
        running_means: Sequence[Tensor],
        running_vars: Sequence[Tensor],
    ) -> None:
        self.kinds, self.eps, self.gammas, self.betas = kinds, eps, gammas, betas
        self.running_means, self.running_vars = running_means, running_vars
        # Of norms of the kind "none" and of operations that are not active.
        self.mean = [like.new_zeros(like.shape[1]) for _ in kinds]
        self.var = [like.new_ones(like.shape[1]) for _ in kinds]

    def __call__(self, y: Tensor, slot: int) -> Tensor:
        if self.kinds[slot] == NORM_NONE:
            return y
        mean, var = self.mean[slot], self.var[slot]
        if self.kinds[slot] == NORM_RUNNING:
            mean, var = self.running_means[slot], self.running_vars[slot]
        elif self.kinds[slot] == NORM_BATCH:
            mean, var = _layers.moments(y)
        self.mean[slot], self.var[slot] = mean.detach(), var.detach()
        gamma, beta = (
            values[slot] if values and values[slot].numel() > 0 else None
            for values in (self.gammas, self.betas)
        )
        return _layers.normalise(y, mean, var, self.eps[slot], gamma, beta)


def _apply(
    op: CellOp, x: Tensor, convolutions: Sequence[Tensor], norms: _Norms, stride: int
) -> Tensor:
    """One operation on one state: [N, C, H, W] to [N, C, H', W']."""
    if op.kind == "identity":
        return x
    if op.kind == "max_pool":
        return norms(functional.max_pool2d(x, 3, stride, 1), op.norms[0])
    if op.kind == "avg_pool":
        y = functional.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
        return norms(y, op.norms[0])
    weights = [convolutions[i] for i in op.convolutions]
    x = x.relu()
    if op.kind == "dense":
        return norms(_layers.dense(x, weights[0], stride), op.norms[0])
    if op.kind == "factorized_reduce":
        return norms(_layers.factorized_reduce(x, *weights), op.norms[0])
    y = _layers.depthwise(x, weights[0], stride, op.dilation)
    y = norms(_layers.pointwise(y, weights[1]), op.norms[0])
    if op.kind == "separable_twice":
        y = _layers.depthwise(y.relu(), weights[2], 1, op.dilation)
        y = norms(_layers.pointwise(y, weights[3]), op.norms[1])
    return y


def images_per_group(states: Sequence[Tensor], groups: int, shared: int) -> int:
    """N of the states of `mixed_cell`."""
    if shared == len(states):
        return states[0].shape[0]
    return states[shared].shape[0] // groups


def mixed_cell(
    states: Sequence[Tensor],
    weights: Tensor,
    convolutions: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    ops: Sequence[int],
    norms: Sequence[int],
    eps: Sequence[float],
    nodes: int,
    multiplier: int,
    stride: int,
    groups: int,
    shared: int,
    active: Tensor | None,
    precision: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``node_i = sum_k w[g, k] * op_k(state)`` over the ops into it, node after node, per group g.

    Args:
        states: S inputs [groups * N, C, H, W]; the first `shared` of them [N, C, H, W].
        weights: [groups, K].
        convolutions: of all ops in order: depthwise [C, 1, k, k] and pointwise [C, C, 1, 1] of each
            separable block, dense [C, C, k, k], both [C / 2, C, 1, 1] of a factorized reduce.
        gammas: one [C] per norm, or an empty tensor for a norm without; [] if none has one.
        betas: as `gammas`.
        running_means: as `gammas`, read for running norms.
        running_vars: as `gammas`, read for running norms.
        ops: five numbers per op, see `cell_ops`.
        norms: `NORM_NONE` (pools only), `NORM_BATCH` or `NORM_RUNNING` per norm, in op order.
        eps: per norm.
        nodes: how many there are.
        multiplier: the last so many nodes are the output.
        stride: of the ops that leave an input state.
        groups: variants stacked along the batch.
        shared: so many of the states, the first ones, are the same for all groups.
        active: bool [groups, K] on the CPU, or None for all. Other ops are not computed.
        precision: has no meaning here; native backends store and multiply as it says.
        save: has no meaning here; native backends keep maps for backward then.

    Returns:
        output [groups * N, multiplier * C, H', W'], an empty tensor in place of a backend's buffer,
        mean and biased var [groups, B, C] of all norms (0 and 1 without statistics).
    """
    first = states[0]
    size = images_per_group(states, groups, shared)
    height, width = (-(-length // stride) for length in first.shape[2:])
    plan = cell_ops(ops)
    # A sum of nothing: states and weights that no active op uses have a gradient, of zeros.
    nothing = weights[:, :0].sum() + sum(x[:0].sum() for x in states)
    outputs, means, variances = [], [], []
    for group in range(groups):
        known = [
            x if i < shared else x[group * size : (group + 1) * size] for i, x in enumerate(states)
        ]
        norm = _Norms(first, norms, eps, gammas, betas, running_means, running_vars)
        for node in range(len(states), len(states) + nodes):
            total = first.new_zeros(size, first.shape[1], height, width) + nothing
            for k, op in enumerate(plan):
                if op.node != node or op.kind == "none":
                    continue
                if active is not None and not active[group, k]:
                    continue
                step = stride if op.source < len(states) else 1
                y = _apply(op, known[op.source], convolutions, norm, step)
                total = total + weights[group, k] * y
            known.append(total)
        outputs.append(torch.cat(known[-multiplier:], dim=1))
        means += norm.mean
        variances += norm.var
    shape = (groups, len(norms), first.shape[1])
    mean = torch.stack(means).view(shape) if means else first.new_zeros(shape)
    var = torch.stack(variances).view(shape) if variances else first.new_ones(shape)
    return torch.cat(outputs), first.new_empty(0), mean, var

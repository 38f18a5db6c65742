# SPDX-License-Identifier: Apache-2.0
"""Separable and dilated convolutions as `conv_blocks`: many operations, few native calls.

An operation that is such a chain of blocks, whole and untouched, is run up to its last batch norm
together with all others of the same input shape and stride; the rest runs as the module it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from darts_fast.functional import conv_blocks, update_running_statistics
from darts_fast.nn.plan import describe


@dataclass(frozen=True)
class Block:
    """ReLU, depthwise, pointwise, and the batch norm behind them."""

    depthwise: nn.Conv2d
    pointwise: nn.Conv2d
    norm: nn.BatchNorm2d

    @property
    def stride(self) -> int:
        return self.depthwise.stride[0]


def separable_blocks(op: nn.Module) -> list[Block] | None:
    """The blocks of an operation that is a chain of them, else None.

    The caller has made sure that calling the op does no more than its forward (no hooks).
    """
    parts = describe(op)
    if parts is None or parts.kind not in ("separable", "separable_twice"):
        return None
    chain = zip(parts.convolutions[::2], parts.convolutions[1::2], parts.norms, strict=True)
    return [
        Block(depthwise, pointwise, cast(nn.BatchNorm2d, norm))
        for depthwise, pointwise, norm in chain
    ]


def norm_kind(norm: nn.BatchNorm2d) -> str:
    """ "batch" or "running": which statistics the module's own forward would use now."""
    return "batch" if norm.training or norm.running_mean is None else "running"


def moves(norm: nn.BatchNorm2d) -> bool:
    """Whether the module's own forward would move its running statistics now."""
    return norm.training and norm.track_running_stats


def run_plans(plans: Sequence[list[Block]], inputs: Sequence[Tensor]) -> list[Tensor]:
    """What the last batch norm of each operation is given, one input per operation.

    Operations share a native call where their inputs have one shape and their first blocks one
    stride and width; second blocks where the batch norms between agree in mode and eps.
    """
    maps: list[Tensor | None] = [None] * len(plans)
    calls: dict[tuple[object, ...], list[int]] = {}
    for k, (blocks, x) in enumerate(zip(plans, inputs, strict=True)):
        first = blocks[0]
        key = (x.shape, first.stride, first.pointwise.out_channels)
        calls.setdefault(key, []).append(k)
    for members in calls.values():
        distinct: dict[int, int] = {}
        for k in members:
            distinct.setdefault(id(inputs[k]), len(distinct))
        sources = [distinct[id(inputs[k])] for k in members]
        shared = [inputs[members[sources.index(i)]] for i in range(len(distinct))]
        blocks = [plans[k][0] for k in members]
        out = conv_blocks(
            shared,
            [block.depthwise.weight for block in blocks],
            [block.pointwise.weight for block in blocks],
            sources=sources,
            dilations=[block.depthwise.dilation[0] for block in blocks],
            stride=blocks[0].stride,
        )
        for k, y in zip(members, out.outputs, strict=True):
            maps[k] = y
        longer = [i for i, k in enumerate(members) if len(plans[k]) == 2]
        _second_blocks(
            [plans[members[i]] for i in longer],
            [members[i] for i in longer],
            out.mean[0, longer],
            out.var[0, longer],
            maps,
        )
    return cast(list[Tensor], maps)


def _second_blocks(
    plans: Sequence[list[Block]],
    places: Sequence[int],
    mean: Tensor,
    var: Tensor,
    maps: list[Tensor | None],
) -> None:
    """Replaces the first blocks' outputs in `maps` at `places` by the second blocks'."""
    calls: dict[tuple[object, ...], list[int]] = {}
    for i, (first, second) in enumerate(plans):
        key = (norm_kind(first.norm), first.norm.eps, first.norm.affine)
        calls.setdefault((*key, second.pointwise.out_channels), []).append(i)
    for (kind, eps, affine, _), members in calls.items():
        inputs = [cast(Tensor, maps[places[i]]) for i in members]
        norms = [plans[i][0].norm for i in members]
        seconds = [plans[i][1] for i in members]
        if kind == "batch":
            means, variances = mean[members], var[members]
        else:
            means = torch.stack([cast(Tensor, norm.running_mean) for norm in norms])
            variances = torch.stack([cast(Tensor, norm.running_var) for norm in norms])
        out = conv_blocks(
            inputs,
            [block.depthwise.weight for block in seconds],
            [block.pointwise.weight for block in seconds],
            dilations=[block.depthwise.dilation[0] for block in seconds],
            norm=cast(str, kind),
            mean=means.unsqueeze(1),
            var=variances.unsqueeze(1),
            gamma=torch.stack([norm.weight for norm in norms]) if affine else None,
            beta=torch.stack([norm.bias for norm in norms]) if affine else None,
            eps=cast(float, eps),
        )
        training = [i for i, norm in enumerate(norms) if moves(norm)]
        update_running_statistics(
            [norms[i] for i in training],
            means[training],
            variances[training],
            inputs[0].numel() // inputs[0].shape[1],
        )
        for i, y in zip(members, out.outputs, strict=True):
            maps[places[i]] = y

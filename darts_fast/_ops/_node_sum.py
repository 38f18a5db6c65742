# SPDX-License-Identifier: Apache-2.0
"""node_sum: fake kernels, autograd with its second derivative, autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from darts_fast import _extension as _extension  # registers the schemas
from darts_fast import reference
from darts_fast._ops._autocast import register_cuda_autocast
from darts_fast._ops._replay import flags, second_derivative

__all__ = ["node_sum", "node_sum_backward"]

node_sum = torch.ops.darts_fast.node_sum.default
node_sum_backward = torch.ops.darts_fast.node_sum_backward.default


def _empty_map(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.channels_last)


@torch.library.register_fake("darts_fast::node_sum")
def _node_sum_fake(
    maps: Sequence[Tensor],
    weights: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norms: Sequence[int],
    eps: Sequence[float],
    groups: int,
    active: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    first = maps[0]
    statistics = (groups, len(maps), first.shape[1])
    return _empty_map(first), weights.new_empty(statistics), weights.new_empty(statistics)


@torch.library.register_fake("darts_fast::node_sum_backward")
def _node_sum_backward_fake(
    grad_node: Tensor,
    maps: Sequence[Tensor],
    weights: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    var: Tensor,
    norms: Sequence[int],
    eps: Sequence[float],
    groups: int,
    active: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    first, terms = maps[0], len(maps)
    parameter = (terms, first.shape[1])

    def wanted(index: int, shape: tuple[int, ...]) -> Tensor:
        return weights.new_empty(shape if output_mask[index] else (0,))

    grad_maps = [_empty_map(first) if output_mask[k] else first.new_empty(0) for k in range(terms)]
    return (
        grad_maps,
        wanted(terms, (groups, terms)),
        wanted(terms + 1, parameter),
        wanted(terms + 2, parameter),
    )


def _node_sum_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    maps, weights, gamma, beta, _, _, norms, eps, groups, active = inputs
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.save_for_backward(*maps, weights, gamma, beta, mean, var, active)
    ctx.norms, ctx.eps, ctx.groups = norms, eps, groups


def _node_sum_autograd(ctx: Any, grad_node: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
    *maps, weights, gamma, beta, mean, var, active = ctx.saved_tensors
    # needs_input_grad has one entry per argument, and for a list one per tensor.
    needs_maps, *needs = ctx.needs_input_grad[:4]
    mask = [*flags(needs_maps, len(maps)), *(bool(need) for need in needs)]
    arguments = (maps, weights, gamma, beta, mean, var, ctx.norms, ctx.eps, ctx.groups, active)
    grad_maps, *grads = node_sum_backward(grad_node, *arguments, mask)
    terms = len(maps)
    return (
        [grad if mask[k] else None for k, grad in enumerate(grad_maps)],
        *(grad if mask[terms + i] else None for i, grad in enumerate(grads)),
        *(None,) * 6,
    )


def _node_sum_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad_node, maps, weights, gamma, beta, mean, var, norms, eps, groups, active, mask = inputs
    ctx.save_for_backward(grad_node, *maps, weights, gamma, beta, mean, var, active)
    ctx.norms, ctx.eps, ctx.groups, ctx.mask = norms, eps, groups, mask


def _node_sum_backward_autograd(
    ctx: Any,
    grad_grad_maps: Sequence[Tensor | None],
    *grad_grads: Tensor | None,
) -> tuple[Any, ...]:
    """Second derivative: the reference, differentiated twice (design 4.5).

    Batch statistics are functions of the maps there; the saved ones get no gradient of their own.
    """
    grad_node, *maps, weights, gamma, beta, mean, var, active = ctx.saved_tensors
    terms = len(maps)

    def specification(arguments: list[Tensor | None]) -> list[Tensor]:
        *y, w, scale, shift = arguments
        alike = cast(Tensor, w)
        node, _, _ = reference.node_sum(
            [cast(Tensor, x).to(alike.dtype) for x in y],
            *(alike, scale, shift, mean[0], var[0]),
            *(ctx.norms, ctx.eps, ctx.groups, active),
        )
        return [node.to(grad_node.dtype)]

    (grad,), grads = second_derivative(
        specification,
        [grad_node],
        [*maps, weights, gamma, beta],
        ctx.mask,
        [*grad_grad_maps, *grad_grads],
    )
    return grad, grads[:terms], *grads[terms:], *(None,) * 7


torch.library.register_autograd(
    "darts_fast::node_sum", _node_sum_autograd, setup_context=_node_sum_setup
)
torch.library.register_autograd(
    "darts_fast::node_sum_backward",
    _node_sum_backward_autograd,
    setup_context=_node_sum_backward_setup,
)
# On the CPU maps of a lower precision are summed in single precision, as torch's autocast does for
# sums.
torch.library.register_autocast("darts_fast::node_sum", "cpu", torch.float32)
register_cuda_autocast("darts_fast::node_sum")

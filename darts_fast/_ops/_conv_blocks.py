# SPDX-License-Identifier: Apache-2.0
"""conv_blocks: fake kernels, autograd with its second derivative, autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from darts_fast import _extension as _extension  # registers the schemas
from darts_fast import reference
from darts_fast._ops._autocast import register_cuda_autocast
from darts_fast._ops._replay import flags, second_derivative

__all__ = ["conv_blocks", "conv_blocks_backward"]

conv_blocks = torch.ops.darts_fast.conv_blocks.default
conv_blocks_backward = torch.ops.darts_fast.conv_blocks_backward.default


@torch.library.register_fake("darts_fast::conv_blocks")
def _fake(
    inputs: Sequence[Tensor],
    mean: Tensor | None,
    var: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    norm: int,
    eps: float,
    sources: Sequence[int],
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    dilations: Sequence[int],
    stride: int,
    groups: int,
    active: Tensor | None,
) -> tuple[list[Tensor], Tensor, Tensor]:
    first = inputs[0]
    batch, _, height, width = first.shape
    shape = (batch, pointwise[0].shape[0], -(-height // stride), -(-width // stride))
    outputs = [
        torch.empty(
            shape, dtype=first.dtype, device=first.device, memory_format=torch.channels_last
        )
        for _ in sources
    ]
    statistics = (groups, len(sources), shape[1])
    like = pointwise[0]
    return outputs, like.new_empty(statistics), like.new_empty(statistics)


@torch.library.register_fake("darts_fast::conv_blocks_backward")
def _backward_fake(
    grad_outputs: Sequence[Tensor],
    arrives: Sequence[bool],
    inputs: Sequence[Tensor],
    mean: Tensor | None,
    var: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    norm: int,
    eps: float,
    sources: Sequence[int],
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    dilations: Sequence[int],
    stride: int,
    groups: int,
    active: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor], list[Tensor]]:
    first = inputs[0]
    wanted = iter(output_mask)
    grad_inputs = [
        torch.empty_like(first, memory_format=torch.channels_last)
        if next(wanted)
        else first.new_empty(0)
        for _ in inputs
    ]
    like = pointwise[0]
    parameter = (len(inputs), first.shape[1])
    grad_gamma = like.new_empty(parameter if next(wanted) else (0,))
    grad_beta = like.new_empty(parameter if next(wanted) else (0,))
    grad_depthwise = [like.new_empty(w.shape if next(wanted) else (0,)) for w in depthwise]
    grad_pointwise = [like.new_empty(w.shape if next(wanted) else (0,)) for w in pointwise]
    return grad_inputs, grad_gamma, grad_beta, grad_depthwise, grad_pointwise


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    maps, mean, var, gamma, beta, norm, eps, sources, depthwise, pointwise, *rest = inputs
    dilations, stride, groups, active = rest
    _, out_mean, out_var = output
    ctx.mark_non_differentiable(out_mean, out_var)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*maps, *depthwise, *pointwise, mean, var, gamma, beta, active)
    ctx.sizes = (len(maps), len(depthwise))
    ctx.settings = (norm, eps, sources, dilations, stride, groups)


def _unpack(ctx: Any, saved: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of the forward, in its order."""
    inputs, branches = ctx.sizes
    maps, saved = saved[:inputs], saved[inputs:]
    depthwise, pointwise, saved = saved[:branches], saved[branches : 2 * branches], saved[-5:]
    mean, var, gamma, beta, active = saved
    norm, eps, sources, dilations, stride, groups = ctx.settings
    return (
        *(list(maps), mean, var, gamma, beta, norm, eps, sources),
        *(list(depthwise), list(pointwise), dilations, stride, groups, active),
    )


def _autograd(
    ctx: Any, grad_outputs: Sequence[Tensor | None] | None, *_: Tensor | None
) -> tuple[Any, ...]:
    arguments = _unpack(ctx, ctx.saved_tensors)
    inputs, branches = ctx.sizes
    needs = ctx.needs_input_grad
    mask = [
        *flags(needs[0], inputs),
        *(bool(needs[3]), bool(needs[4])),
        *flags(needs[8], branches),
        *flags(needs[9], branches),
    ]
    incoming = [None] * branches if grad_outputs is None else list(grad_outputs)
    arrives = [grad is not None for grad in incoming]
    empty = arguments[0][0].new_empty(0)
    # An empty weight, of a branch without depthwise convolution, has an empty gradient.
    for b, weight in enumerate(arguments[8]):
        mask[inputs + 2 + b] = mask[inputs + 2 + b] and weight.numel() > 0
    results = conv_blocks_backward(
        [empty if grad is None else grad for grad in incoming], arrives, *arguments, mask
    )
    grad_inputs, grad_gamma, grad_beta, grad_depthwise, grad_pointwise = results
    flat = [*grad_inputs, grad_gamma, grad_beta, *grad_depthwise, *grad_pointwise]
    kept = [grad if want else None for grad, want in zip(flat, mask, strict=True)]
    return (
        *(kept[:inputs], None, None, kept[inputs], kept[inputs + 1], None, None, None),
        kept[inputs + 2 : inputs + 2 + branches],
        kept[inputs + 2 + branches :],
        *(None,) * 4,
    )


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad_outputs, arrives, maps, mean, var, gamma, beta, norm, eps, sources, *rest = inputs
    depthwise, pointwise, dilations, stride, groups, active, mask = rest
    ctx.save_for_backward(
        *grad_outputs, *maps, *depthwise, *pointwise, mean, var, gamma, beta, active
    )
    ctx.set_materialize_grads(False)
    ctx.sizes = (len(maps), len(depthwise))
    ctx.settings = (norm, eps, sources, dilations, stride, groups)
    ctx.arrives, ctx.mask = arrives, mask


def _backward_autograd(
    ctx: Any,
    grad_grad_inputs: Sequence[Tensor | None] | None,
    grad_grad_gamma: Tensor | None,
    grad_grad_beta: Tensor | None,
    grad_grad_depthwise: Sequence[Tensor | None] | None,
    grad_grad_pointwise: Sequence[Tensor | None] | None,
) -> tuple[Any, ...]:
    inputs, branches = ctx.sizes
    saved = ctx.saved_tensors
    grad_outputs, forward = saved[:branches], _unpack(ctx, saved[branches:])
    maps, mean, var, gamma, beta, norm, eps, sources, depthwise, pointwise, *rest = forward

    def specification(arguments: list[Tensor | None]) -> list[Tensor]:
        x, scale, shift = arguments[:inputs], arguments[inputs], arguments[inputs + 1]
        weights = cast(list[Tensor], arguments[inputs + 2 :])
        alike = weights[-1].dtype
        outputs, _, _ = reference.conv_blocks(
            *([cast(Tensor, y).to(alike) for y in x], mean, var, scale, shift, norm, eps, sources),
            *(weights[:branches], weights[branches:], *rest),
        )
        return [y.to(maps[0].dtype) for y in outputs]

    grads_of_grads, grads = second_derivative(
        specification,
        [g if arrives else None for g, arrives in zip(grad_outputs, ctx.arrives, strict=True)],
        [*maps, gamma, beta, *depthwise, *pointwise],
        ctx.mask,
        [
            *(grad_grad_inputs or [None] * inputs),
            *(grad_grad_gamma, grad_grad_beta),
            *(grad_grad_depthwise or [None] * branches),
            *(grad_grad_pointwise or [None] * branches),
        ],
    )
    return (
        *(grads_of_grads, None, grads[:inputs], None, None, grads[inputs], grads[inputs + 1]),
        *(None, None, None, grads[inputs + 2 : inputs + 2 + branches]),
        *(grads[inputs + 2 + branches :], *(None,) * 5),
    )


torch.library.register_autograd("darts_fast::conv_blocks", _autograd, setup_context=_setup)
torch.library.register_autograd(
    "darts_fast::conv_blocks_backward", _backward_autograd, setup_context=_backward_setup
)
torch.library.register_autocast("darts_fast::conv_blocks", "cpu", torch.float32)
register_cuda_autocast("darts_fast::conv_blocks")

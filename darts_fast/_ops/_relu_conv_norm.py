# SPDX-License-Identifier: Apache-2.0
"""relu_conv_norm: fake kernels, autograd with its second derivative, autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from darts_fast import _extension as _extension  # registers the schemas
from darts_fast import reference
from darts_fast._ops._autocast import register_autocast
from darts_fast._ops._direct import direct
from darts_fast._ops._replay import flags, second_derivative

__all__ = ["call_relu_conv_norm", "relu_conv_norm", "relu_conv_norm_backward"]

relu_conv_norm = torch.ops.darts_fast.relu_conv_norm.default
relu_conv_norm_backward = torch.ops.darts_fast.relu_conv_norm_backward.default


@torch.library.register_fake("darts_fast::relu_conv_norm")
def _fake(
    input: Tensor,
    weights: Sequence[Tensor],
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: int,
    eps: float,
    stride: int,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, _, height, width = input.shape
    channels = sum(weight.shape[0] for weight in weights)
    output, raw = (
        torch.empty(
            (batch, channels, -(-height // stride), -(-width // stride)),
            dtype=input.dtype,
            device=input.device,
            memory_format=torch.channels_last,
        )
        for _ in range(2)
    )
    statistics = (groups, channels)
    return output, raw, weights[0].new_empty(statistics), weights[0].new_empty(statistics)


@torch.library.register_fake("darts_fast::relu_conv_norm_backward")
def _backward_fake(
    grad_output: Tensor,
    input: Tensor,
    raw: Tensor,
    mean: Tensor,
    var: Tensor,
    weights: Sequence[Tensor],
    gamma: Tensor | None,
    beta: Tensor | None,
    norm: int,
    eps: float,
    stride: int,
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    wanted = iter(output_mask)
    grad_input = (
        torch.empty_like(input, memory_format=torch.channels_last)
        if next(wanted)
        else input.new_empty(0)
    )
    grad_weights = [w.new_empty(w.shape if next(wanted) else (0,)) for w in weights]
    grad_gamma = mean.new_empty(mean.shape[1:] if next(wanted) else (0,))
    grad_beta = mean.new_empty(mean.shape[1:] if next(wanted) else (0,))
    return grad_input, grad_weights, grad_gamma, grad_beta


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    x, weights, gamma, beta, _, _, *settings = inputs
    _, raw, mean, var = output
    ctx.mark_non_differentiable(raw, mean, var)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, raw, mean, var, *weights, gamma, beta)
    ctx.settings = settings


def _autograd(ctx: Any, grad_output: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    x, raw, mean, var, *weights, gamma, beta = ctx.saved_tensors
    need_input, need_weights, *need_affine = ctx.needs_input_grad[:4]
    mask = [bool(need_input), *flags(need_weights, len(weights)), *map(bool, need_affine)]
    kept: list[Tensor | None] = [None] * len(mask)
    if grad_output is not None:
        grad_input, grad_weights, *grad_affine = relu_conv_norm_backward(
            *(grad_output, x, raw, mean, var, weights, gamma, beta, *ctx.settings, mask)
        )
        flat = [grad_input, *grad_weights, *grad_affine]
        kept = [grad if want else None for grad, want in zip(flat, mask, strict=True)]
    return kept[0], kept[1:-2], *kept[-2:], *(None,) * 6


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad_output, x, _, mean, var, weights, gamma, beta, *settings, mask = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_output, mean, var, x, *weights, gamma, beta)
    ctx.settings, ctx.mask = settings, mask


def _backward_autograd(
    ctx: Any,
    grad_grad_input: Tensor | None,
    grad_grad_weights: Sequence[Tensor | None] | None,
    *grad_grad_affine: Tensor | None,
) -> tuple[Any, ...]:
    grad_output, mean, var, *arguments = ctx.saved_tensors

    def specification(leaves: list[Tensor | None]) -> list[Tensor]:
        x, *weights, gamma, beta = leaves
        # Running statistics are those of every group.
        output, *_ = reference.relu_conv_norm(
            *(cast(Tensor, x).to(mean.dtype), cast(list[Tensor], weights)),
            *(gamma, beta, mean[0], var[0], *ctx.settings),
        )
        return [output.to(grad_output.dtype)]

    (grad,), grads = second_derivative(
        specification,
        [grad_output],
        arguments,
        ctx.mask,
        [
            grad_grad_input,
            *(grad_grad_weights or [None] * (len(arguments) - 3)),
            *grad_grad_affine,
        ],
    )
    # raw, mean and var are functions of the input: what passes through them is in its gradient.
    return grad, grads[0], None, None, None, grads[1:-2], *grads[-2:], *(None,) * 5


torch.library.register_autograd("darts_fast::relu_conv_norm", _autograd, setup_context=_setup)
torch.library.register_autograd(
    "darts_fast::relu_conv_norm_backward", _backward_autograd, setup_context=_backward_setup
)
call_relu_conv_norm = direct(relu_conv_norm, _setup, _autograd)
register_autocast("darts_fast::relu_conv_norm")

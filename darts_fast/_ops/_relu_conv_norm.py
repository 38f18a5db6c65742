# SPDX-License-Identifier: Apache-2.0
"""relu_conv_norm: fake kernels, second derivative, autocast; its first one is that of the
extension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from darts_fast import _extension as _extension  # registers the schemas
from darts_fast import reference
from darts_fast._ops._autocast import register_autocast
from darts_fast._ops._replay import second_derivative

__all__ = ["relu_conv_norm", "relu_conv_norm_backward"]

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
    relu: bool = True,
    save: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, _, height, width = input.shape
    channels = sum(weight.shape[0] for weight in weights)
    output = torch.empty(
        (batch, channels, -(-height // stride), -(-width // stride)),
        dtype=input.dtype,
        device=input.device,
        memory_format=torch.channels_last,
    )
    raw = torch.empty_like(output) if save else input.new_empty(0)
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
    relu: bool,
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
    return grad, grads[0], None, None, None, grads[1:-2], *grads[-2:], *(None,) * 6


torch.library.register_autograd(
    "darts_fast::relu_conv_norm_backward", _backward_autograd, setup_context=_backward_setup
)
register_autocast("darts_fast::relu_conv_norm")

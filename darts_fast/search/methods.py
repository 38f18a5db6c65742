# SPDX-License-Identifier: Apache-2.0
"""What a search method does to the architecture weights, once before every weight step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from darts_fast.distributed import ALONE, World
from darts_fast.nn import Supernet, frozen
from darts_fast.search.joint import share_loss

__all__ = ["ARCHITECTURE_STEPS", "ArchitectureStep", "first_order_step"]


def first_order_step(
    net: Supernet,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    world: World = ALONE,
) -> float:
    """One architecture step of first-order DARTS (Liu et al., section 2.3, xi = 0): Adam on
    ``dL_val/dalpha``.

    Only the architecture gradient is computed; the weights are frozen for the step. A loss that is
    not finite moves nothing.

    Args:
        images: ``[N, 3, H, W]`` of the validation half.
        labels: ``[N]``.
        world: processes that share a batch; `images` are then this one's share, and `labels` those
            of the whole batch.

    Returns:
        The validation loss before the step.
    """
    alphas = net.arch_parameters()
    with frozen(list(net.parameters())):
        loss, _ = share_loss(net, images, labels, world)
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, alphas, allow_unused=True, materialize_grads=True)
        else:  # every edge is decided, or the share is empty
            gradients = tuple(torch.zeros_like(alpha) for alpha in alphas)
    loss = loss.detach()
    world.sum([loss, *gradients])
    for alpha, gradient in zip(alphas, gradients, strict=True):
        alpha.grad = gradient
    value = float(loss)
    if math.isfinite(value):
        optimizer.step()
    return value


ArchitectureStep = Callable[[Supernet, torch.optim.Optimizer, Tensor, Tensor, World], float]

ARCHITECTURE_STEPS: dict[str, ArchitectureStep | None] = {
    "darts": first_order_step,
    "blank": None,
}

# SPDX-License-Identifier: Apache-2.0
"""The second-order architecture gradient of a network and an optimizer that are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from darts_fast.compat._alphas import Searched, loss_gradients
from darts_fast.search.methods.darts import unrolled_gradient
from darts_fast.search.methods.numeric import FINITE_DIFFERENCE, restored

Batch = tuple[Tensor, Tensor]


def unrolled_alpha_gradients(
    model: Searched,
    train: Batch,
    valid: Batch,
    *,
    eta: float,
    momentum: float,
    weight_decay: float,
    network_optimizer: torch.optim.Optimizer,
    scale: float = FINITE_DIFFERENCE,
) -> list[Tensor]:
    """`unrolled_gradient` with the momentum buffers of `network_optimizer` and a step of size eta.

    The weights are bitwise as before. Running statistics move three times with the training batch
    and not at all with the validation batch, as in the original.
    """

    def on_train(leaves: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        return loss_gradients(model, train, leaves)

    def on_valid(leaves: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        with restored(list(model.buffers())):
            return loss_gradients(model, valid, leaves)

    weights = list(model.parameters())
    states = [network_optimizer.state.get(weight, {}) for weight in weights]
    _, gradients = unrolled_gradient(
        on_train,
        on_valid,
        weights,
        model.arch_parameters(),
        learning_rate=eta,
        momentum=momentum,
        weight_decay=weight_decay,
        buffers=[state.get("momentum_buffer") for state in states],
        scale=scale,
    )
    return gradients

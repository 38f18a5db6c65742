# SPDX-License-Identifier: Apache-2.0
"""The architecture step of DARTS, first and second order (Liu et al., ICLR 2019, section 2.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from darts_fast.compat._alphas import Searched, accumulate, alpha_optimizer, loss_gradients
from darts_fast.compat._unrolled import unrolled_alpha_gradients

__all__ = ["Architect"]


class Architect:
    """Adam with betas (0.5, 0.999) on the alphas of a network.

    Args: model, with `_loss`, `arch_parameters` and `parameters`; args, with `momentum` and
    `weight_decay` of the weights' optimizer, `arch_learning_rate` and `arch_weight_decay`.
    """

    def __init__(self, model: Searched, args: Any) -> None:
        self.network_momentum = args.momentum
        self.network_weight_decay = args.weight_decay
        self.model = model
        self.optimizer = alpha_optimizer(model.arch_parameters(), args)

    def step(
        self,
        input_train: Tensor,
        target_train: Tensor,
        input_valid: Tensor,
        target_valid: Tensor,
        eta: float,
        network_optimizer: torch.optim.Optimizer,
        unrolled: bool,
    ) -> Tensor:
        """One step of the alphas on the validation batch.

        unrolled: differentiate through one virtual step of the weights on the training batch, of
        size eta; its momentum is read from network_optimizer. Weights and their gradients stay
        bitwise as they are; running statistics move with one forward of the validation batch
        (first order) or three of the training batch (second). Returns the norm of the gradient of
        all alphas, which scripts of early revisions average; it is not clipped.
        """
        self.optimizer.zero_grad()
        if unrolled:
            gradients = unrolled_alpha_gradients(
                self.model,
                (input_train, target_train),
                (input_valid, target_valid),
                eta=eta,
                momentum=self.network_momentum,
                weight_decay=self.network_weight_decay,
                network_optimizer=network_optimizer,
            )
        else:
            valid = input_valid, target_valid
            _, gradients = loss_gradients(self.model, valid, self.model.arch_parameters())
        accumulate(self.model.arch_parameters(), gradients)
        self.optimizer.step()
        return torch.nn.utils.get_total_norm(gradients)

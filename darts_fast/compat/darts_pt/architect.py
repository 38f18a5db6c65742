# SPDX-License-Identifier: Apache-2.0
"""The first-order architecture step of DARTS-PT, or none at all ("blank")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from darts_fast.compat._alphas import Searched, accumulate, alpha_optimizer, loss_gradients

__all__ = ["Architect"]

_METHODS = {"darts": "fo", "sdarts": "fo", "blank": "blank"}


class Architect:
    """Adam with betas (0.5, 0.999) on the alphas of a network.

    Args: model; args, with `method` ("darts", "sdarts" or "blank", also with "-proj"), `momentum`,
    `weight_decay`, `arch_learning_rate` and `arch_weight_decay`. Raises ValueError for another
    method: the second order is `darts_fast.compat.darts.Architect`.
    """

    def __init__(self, model: Searched, args: Any) -> None:
        name = args.method.removesuffix("-proj")
        if name not in _METHODS:
            raise ValueError(
                f"Architect: method must be {', '.join(_METHODS)}, alone or with -proj, "
                f"got {args.method!r}"
            )
        self.method = _METHODS[name]
        self.network_momentum = args.momentum
        self.network_weight_decay = args.weight_decay
        self.model = model
        self.optimizer = alpha_optimizer(model.arch_parameters(), args)
        self._init_arch_parameters = [alpha.detach().clone() for alpha in model.arch_parameters()]

    def reset_arch_parameters(self) -> None:
        """The alphas that the network had when this was made."""
        with torch.no_grad():
            for alpha, values in zip(
                self.model.arch_parameters(), self._init_arch_parameters, strict=True
            ):
                alpha.copy_(values)

    def step(
        self,
        input_train: Tensor,
        target_train: Tensor,
        input_valid: Tensor,
        target_valid: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """One step of the alphas on the validation batch; nothing at all for "blank".

        Gradients add to those that are there: call ``optimizer.zero_grad()`` first. Further
        arguments are not used.
        """
        if self.method == "fo":
            alphas, valid = self.model.arch_parameters(), (input_valid, target_valid)
            accumulate(alphas, loss_gradients(self.model, valid, alphas)[1])
            self.optimizer.step()

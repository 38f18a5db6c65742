# SPDX-License-Identifier: Apache-2.0
"""Networks that own the optimizer of their weights, as those of the DARTS-PT code do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from darts_fast.compat._alphas import HiddenAlphas


class OwnOptimizer(HiddenAlphas):
    """A supernet with `optimizer`, SGD of its weights, and `step`."""

    optimizer: torch.optim.SGD

    def reset_optimizer(self, lr: float, momentum: float, weight_decay: float) -> None:
        """A fresh SGD, without the momentum of the one before."""
        self.optimizer = torch.optim.SGD(
            self.get_weights(), lr, momentum=momentum, weight_decay=weight_decay
        )

    def get_weights(self) -> Iterable[nn.Parameter]:
        """Every parameter but the alphas."""
        return self.parameters()

    def _loss(self, input: Tensor, target: Tensor, return_logits: bool = False) -> Any:
        """The criterion, or (criterion, logits)."""
        logits = self(input)
        loss = self._criterion(logits, target)
        return (loss, logits) if return_logits else loss

    def step(self, input: Tensor, target: Tensor, args: Any, shared: None = None) -> Any:
        """One step of the weights, their gradient clipped to the norm `args.grad_clip`.

        Gradients add to those that are there: call ``optimizer.zero_grad()`` first. Returns
        (logits, loss). Raises ValueError if shared is not None.
        """
        if shared is not None:
            raise ValueError(f"step: shared must be None, got {type(shared).__name__}")
        loss, logits = self._loss(input, target, return_logits=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.get_weights(), args.grad_clip)
        self.optimizer.step()
        return logits, loss

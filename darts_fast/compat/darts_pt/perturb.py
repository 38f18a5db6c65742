# SPDX-License-Identifier: Apache-2.0
"""Perturbations of the edge weights (SmoothDARTS, Chen and Hsieh, ICML 2020, section 3), to be
called between `softmax_arch_parameters` and `restore_arch_parameters`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from darts_fast.compat._alphas import loss_gradients
from darts_fast.compat.darts_pt._softmaxed import Softmaxed

__all__ = ["Linf_PGD_alpha", "Random_alpha"]


def Random_alpha(model: Softmaxed, X: Tensor, y: Tensor, epsilon: float) -> None:  # noqa: N802, N803
    """Add U(-epsilon, epsilon) to every edge weight, then `clip`; X and y are not used."""
    with torch.no_grad():
        for alpha in model.arch_parameters():
            alpha.add_(torch.empty_like(alpha).uniform_(-epsilon, epsilon))
    model.clip()


def Linf_PGD_alpha(  # noqa: N802
    model: Softmaxed,
    X: Tensor,  # noqa: N803
    y: Tensor,
    epsilon: float,
    steps: int = 7,
    random_start: bool = True,
) -> None:
    """Edge weights near the present ones at which the loss of a batch is large.

    `steps` steps of size 2 epsilon / steps along the sign of the gradient, each followed by the
    L-infinity ball and by `clip`; where the loss has not grown, the weights are put back. The
    network is in evaluation mode meanwhile. No `.grad` changes.
    """
    training = model.training
    model.eval()
    start = [alpha.detach().clone() for alpha in model.arch_parameters()]
    with torch.no_grad():
        before = model._loss(X, y)
    if random_start:
        Random_alpha(model, X, y, epsilon)
    for _ in range(steps):
        _, gradients = loss_gradients(model, (X, y), model.arch_parameters())
        with torch.no_grad():
            for alpha, origin, gradient in zip(
                model.arch_parameters(), start, gradients, strict=True
            ):
                alpha.add_(gradient.sign(), alpha=2 * epsilon / steps)
                alpha.copy_(origin + (alpha - origin).clamp(-epsilon, epsilon))
        model.clip()
    with torch.no_grad():
        after = model._loss(X, y)
    if before > after:
        model.set_arch_parameters(start)
    model.train(training)

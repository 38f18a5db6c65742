# SPDX-License-Identifier: Apache-2.0
"""The second-order architecture gradient (DARTS, Liu et al., ICLR 2019, section 2.3, equations 7 to
8): the validation loss after one virtual step of the weights, its second derivative by a central
difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from darts_fast.compat._alphas import Searched, alpha_gradients

Batch = tuple[Tensor, Tensor]

_RADIUS = 1e-2


def unrolled_alpha_gradients(
    model: Searched,
    train: Batch,
    valid: Batch,
    *,
    eta: float,
    momentum: float,
    weight_decay: float,
    network_optimizer: torch.optim.Optimizer,
    radius: float = _RADIUS,
) -> list[Tensor]:
    """dL_val(w', alpha)/dalpha with w' = w - eta * (momentum * buffer + dL_train/dw + decay * w).

    The buffer of a weight is `network_optimizer`'s ``momentum_buffer``, 0 where it has none. The
    mixed second derivative is (dL_train/dalpha at w + h v minus that at w - h v) / 2h with
    v = dL_val/dw' and h = radius / |v|.

    The weights are bitwise as before. Running statistics move three times with the training batch
    and not at all with the validation batch, as in the original.
    """
    weights, alphas = list(model.parameters()), model.arch_parameters()
    velocities = [network_optimizer.state[w].get("momentum_buffer") for w in weights]
    with _put_back(weights):
        gradients = _gradients(model._loss(*train), weights)
        with torch.no_grad():
            for w, velocity, gradient in zip(weights, velocities, gradients, strict=True):
                step = gradient + weight_decay * w
                w.sub_(eta * (step if velocity is None else step + momentum * velocity))
        with _put_back(list(model.buffers())):
            found = _gradients(model._loss(*valid), [*alphas, *weights])
    direct, vector = found[: len(alphas)], found[len(alphas) :]
    length = float(torch.linalg.vector_norm(torch.stack([v.norm() for v in vector])))
    if length == 0.0:
        return list(direct)
    h = radius / length
    plus, minus = (_shifted(model, weights, vector, sign * h, train) for sign in (1, -1))
    return [
        g - eta * (up - down) / (2 * h) for g, up, down in zip(direct, plus, minus, strict=True)
    ]


def _gradients(loss: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


def _shifted(
    model: Searched,
    weights: Sequence[Tensor],
    vector: Sequence[Tensor],
    h: float,
    train: Batch,
) -> tuple[Tensor, ...]:
    """dL_train/dalpha at w + h * vector."""
    with _put_back(weights):
        with torch.no_grad():
            for w, v in zip(weights, vector, strict=True):
                w.add_(v, alpha=h)
        return alpha_gradients(model, *train)


@contextmanager
def _put_back(tensors: Sequence[Tensor]) -> Iterator[None]:
    """The tensors have their values of before, to the bit, behind the block."""
    saved = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in zip(tensors, saved, strict=True):
                tensor.copy_(values)
